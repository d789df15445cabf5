"""A photo of 2048x1536 to what the model reads: our uint8 square, beside the published float32 path
and beside decoding alone.

    python benchmarks/reader_decode.py     (on a machine that does nothing else)

CPU milliseconds, the best of five rounds over the same photos. Decoding alone is the fastest of
what is installed (Pillow, simplejpeg, OpenCV), whole and without scaling; decoding to half the size
alone, which the square is made of, stands beside it. How far a scaled square is from the exact one
is given as PSNR.
"""

from __future__ import annotations

import importlib
import io
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from photos import photo
from PIL import Image
from reference_path import PAD, SIDE, to_float_square
from results import arguments, report

from vltrain.processing.images import decode_square

WIDTH, HEIGHT, PHOTOS, ROUNDS = 2048, 1536, 16, 5


def main() -> None:
    parsed = arguments("Decoding.").parse_args()
    photos = [photo(WIDTH, HEIGHT, number=n) for n in range(2 if parsed.quick else PHOTOS)]
    ways: dict[str, Callable[[bytes], Any]] = {
        "vltrain, scaled": lambda data: square(data, mode="scaled"),
        "vltrain, exact": lambda data: square(data, mode="exact"),
        "reference, float32": to_float_square,
        **alone(),
    }
    figures = {name: milliseconds(way, photos) for name, way in ways.items()}
    fastest = min(found for name, found in figures.items() if name.startswith("decode alone"))
    ours = figures["vltrain, scaled"]
    report(
        "reader_decode",
        figures={
            "cpu_ms": figures,
            "bytes_per_photo": sum(map(len, photos)) / len(photos),
            "psnr_scaled_db": psnr(photos[0]),
        },
        goals={
            "reference path over ours, times": (figures["reference, float32"] / ours, ">=", 8.0),
            "ours over the fastest decode alone, times": (ours / fastest, "<=", 1.15),
        },
        draw=lambda figure: draw(figure, figures),
        out=parsed.out,
    )


def square(data: bytes, *, mode: Literal["exact", "scaled"]) -> np.ndarray:
    return decode_square(data, side=SIDE, pad_color=PAD, rounding="official", mode=mode)


def alone() -> dict[str, Callable[[bytes], Any]]:
    """JPEG bytes to RGB pixels (of half the width and height, where said), nothing else."""
    found: dict[str, Callable[[bytes], Any]] = {
        "decode alone, Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)))
    }
    try:
        simplejpeg = importlib.import_module("simplejpeg")
        found["decode alone, simplejpeg"] = simplejpeg.decode_jpeg
        found["half size alone, simplejpeg"] = lambda data: simplejpeg.decode_jpeg(
            data, min_height=HEIGHT // 2, min_width=WIDTH // 2
        )
    except ImportError:
        print("simplejpeg: skipped, it is not installed")
    try:
        cv2 = importlib.import_module("cv2")
        found["decode alone, OpenCV"] = lambda data: cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR
        )
    except ImportError:
        print("OpenCV: skipped, it is not installed")
    return found


def milliseconds(way: Callable[[bytes], Any], photos: list[bytes]) -> float:
    """CPU time of one photo, the best round."""
    rounds = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        for data in photos:
            way(data)
        rounds.append(1e3 * (time.process_time() - begin) / len(photos))
    return min(rounds)


def psnr(data: bytes) -> float:
    """Scaled against exact, in dB, over the photo (not the padding)."""
    exact, scaled = (square(data, mode=mode).astype(np.float64) for mode in ("exact", "scaled"))
    shown = slice((SIDE - SIDE * HEIGHT // WIDTH) // 2, (SIDE + SIDE * HEIGHT // WIDTH) // 2)
    error = float(np.mean((exact[shown] - scaled[shown]) ** 2))
    return 10 * np.log10(255**2 / max(error, 1e-9))


def draw(figure: Figure, figures: dict[str, float]) -> None:
    axes = figure.subplots()
    axes.barh(list(figures), list(figures.values()))
    axes.invert_yaxis()
    axes.set_xlabel("CPU ms, 2048x1536 JPEG")


if __name__ == "__main__":
    main()
