"""Photographs and captions that nobody owns, as tars, for the benchmarks of the reader.

A photo is noise of several scales laid over each other, about two bits a pixel as JPEG, as phones
save them. A few are made and used again under other keys.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

MADE = 16
PIECE_BYTES = 8 * 2**20
_WORDS = ("a", "dog", "runs", "over", "green", "grass", "while", "two", "children", "watch", "it")


def photo(width: int, height: int, *, number: int) -> bytes:
    """A JPEG of about two bits a pixel."""
    rng = np.random.default_rng(number)
    total = np.zeros((height, width, 3), dtype=np.float32)
    for scale, weight in ((64, 90.0), (16, 50.0), (4, 24.0), (1, 9.0)):
        small = rng.integers(0, 256, (-(-height // scale), -(-width // scale), 3), dtype=np.uint8)
        large = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        total += (np.asarray(large, dtype=np.float32) - 127.5) * (weight / 127.5)
    stream = io.BytesIO()
    picture = Image.fromarray(np.clip(total + 127.5, 0, 255).astype(np.uint8))
    picture.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def sentence(number: int, *, words: int) -> str:
    rng = np.random.default_rng(number)
    return " ".join(_WORDS[i] for i in rng.integers(0, len(_WORDS), words)) + "."


def write_captions(
    folder: Path, *, samples: int, shards: int, size: tuple[int, int], words: int
) -> int:
    """KEY.jpg, KEY.json and KEY.txt, as img2dataset writes them. Returns the bytes of all
    members."""
    photos = [photo(*size, number=n) for n in range(min(MADE, samples))]
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for shard in range(shards):
        with _tar(folder / f"{shard:05d}.tar") as tar:
            for number in range(shard, samples, shards):
                text = sentence(number, words=words)
                meta = json.dumps({"key": f"{number:09d}", "width": size[0], "height": size[1]})
                total += _add(tar, f"{number:09d}.jpg", photos[number % len(photos)])
                total += _add(tar, f"{number:09d}.json", meta.encode())
                total += _add(tar, f"{number:09d}.txt", text.encode())
    return total


def write_texts(folder: Path, *, samples: int, shards: int, words: int) -> int:
    """KEY.txt. Returns the bytes of all members."""
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for shard in range(shards):
        with _tar(folder / f"{shard:05d}.tar") as tar:
            for number in range(shard, samples, shards):
                text = sentence(number, words=words)
                total += _add(tar, f"{number:09d}.txt", text.encode())
    return total


@contextmanager
def _tar(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar to write, in large pieces as a download or a copy writes it: the page cache keeps what
    came in tarfile's small pieces in small pages, which take half as long again to read."""
    with (
        path.open("wb", buffering=PIECE_BYTES) as file,
        tarfile.open(fileobj=file, mode="w") as tar,
    ):
        yield tar


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    return len(data)
