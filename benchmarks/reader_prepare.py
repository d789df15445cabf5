"""What preparing costs: images and megabytes of text per second of CPU, and 100 million samples.

    python benchmarks/reader_prepare.py     (on a machine that does nothing else)

Captions with 640x480 photos, and texts of about 3,000 characters, indexed and measured in this
process from tars that the page cache holds. What follows for 100 million samples on 64 cores is
reckoned: shards are prepared independently of each other, so cores add up as long as the disks do.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from photos import write_captions, write_texts
from results import arguments, report
from tables import encoder, prepare

from vltrain.batch import RecordKind

CAPTIONS, TEXTS, SHARDS = 8000, 8000, 4
MANY, CORES = 100_000_000, 64


def main() -> None:
    parsed = arguments("Preparing.").parse_args()
    scale = 10 if parsed.quick else 1
    encoder()
    with tempfile.TemporaryDirectory() as folder:
        captions, texts = Path(folder) / "captions", Path(folder) / "texts"
        figures = {
            "captions": measured(
                captions,
                RecordKind.caption,
                samples=CAPTIONS // scale,
                size=write_captions(
                    captions, samples=CAPTIONS // scale, shards=SHARDS, size=(640, 480), words=20
                ),
            ),
            "texts": measured(
                texts,
                RecordKind.text,
                samples=TEXTS // scale,
                size=write_texts(texts, samples=TEXTS // scale, shards=SHARDS, words=600),
            ),
        }
    report(
        "reader_prepare",
        figures=figures,
        goals={},
        draw=lambda figure: draw(figure, figures),
        out=parsed.out,
    )
    for name, found in figures.items():
        print(
            f"{name}: {found['samples_per_cpu_second']:,.0f} samples, "
            f"{found['megabytes_per_cpu_second']:,.1f} MB per CPU second; {MANY:,} samples on "
            f"{CORES} cores: {found['hours_for_100_million_on_64_cores']:.2f} h (reckoned)"
        )


def measured(folder: Path, kind: RecordKind, *, samples: int, size: int) -> dict[str, float]:
    begin = time.process_time()
    prepare(folder, kind)
    seconds = time.process_time() - begin
    return {
        "samples_per_cpu_second": samples / seconds,
        "megabytes_per_cpu_second": size / 1e6 / seconds,
        "hours_for_100_million_on_64_cores": MANY / samples * seconds / CORES / 3600,
    }


def draw(figure: Figure, figures: dict[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    left.bar(list(figures), [found["samples_per_cpu_second"] for found in figures.values()])
    left.set_ylabel("samples per CPU second")
    right.bar(list(figures), [found["megabytes_per_cpu_second"] for found in figures.values()])
    right.set_ylabel("MB per CPU second")


if __name__ == "__main__":
    main()
