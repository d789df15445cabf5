"""Which records are held out: a pure function of the record's key, fixed for ever by a salt.

Hashing the key (xxh3-64) instead of drawing in order means that a record never changes sides when
others come or go, so a held-out picture cannot drift into a train split with the next package
version.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

import xxhash

_SALT = "vltrain-split-1"


class Split(str, Enum):
    """The two sides. No image, question or document is on both."""

    train = "train"
    held_out = "held_out"


def fraction(key: str, *, purpose: str = "split") -> float:
    """A number in [0, 1) fixed by ``key``; ``purpose`` separates independent choices about one
    key."""
    return xxhash.xxh3_64_intdigest(f"{_SALT}\0{purpose}\0{key}".encode()) / 2**64


def choose(key: str, options: tuple[str, ...], *, purpose: str) -> str:
    """One of ``options``, fixed by ``key``."""
    return options[int(fraction(key, purpose=purpose) * len(options))]


def split_of(key: str, *, held_out_share: float) -> Split:
    """The side of ``key`` when about ``held_out_share`` of all keys are to be held out."""
    return Split.held_out if fraction(key) < held_out_share else Split.train


def mixed_order(key: str) -> tuple[float, str]:
    """Sort key of records that come sorted by subject: afterwards every prefix and every block of a
    shard is a fair sample."""
    return fraction(key, purpose="order"), key


def held_out_exactly(keys: Iterable[str], *, number: int) -> frozenset[str]:
    """The ``number`` keys with the smallest hashes: an exact count instead of a share."""
    ranked = sorted(keys, key=lambda key: (fraction(key), key))
    if len(ranked) < number:
        raise ValueError(f"{number} keys to hold out of only {len(ranked)}")
    return frozenset(ranked[:number])
