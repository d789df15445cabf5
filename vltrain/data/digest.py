"""What was trained on, as hashes: keys, token ids and stored image bytes.

A pack's digest is made where it is read; a step's is made of its packs' in global pack order; the
chain links the steps, so that one short text proves every batch up to a step, whatever the ranks,
workers and resumes were. xxh3-128: several GB/s on one core, and nobody attacks it. Every field is
framed by its length, so that no two different packs can make the same bytes. The mask is not in
it: it follows from the ids by the encoder, whose digest is in the recipe's.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import xxhash

_HOLE = b"hole"
_PIECE = b"data"


def pack_digest(
    number: int, pieces: Sequence[tuple[str, np.ndarray | None, Sequence[bytes]]]
) -> bytes:
    """16 bytes of a pack: its number and, of each piece, key, ids (None: a hole) and the stored
    bytes of its images."""
    hasher = xxhash.xxh3_128(struct.pack("<qq", number, len(pieces)))
    for key, ids, images in pieces:
        name = key.encode()
        if ids is None:
            hasher.update(_HOLE + struct.pack("<q", len(name)) + name)
            continue
        hasher.update(_PIECE + struct.pack("<qqq", len(name), len(ids), len(images)) + name)
        hasher.update(np.ascontiguousarray(ids, dtype="<i4").tobytes())
        for image in images:
            hasher.update(struct.pack("<q", len(image)))
            hasher.update(image)
    return hasher.digest()


def step_digest(digests: Sequence[bytes]) -> str:
    """Hex of a step: its packs' digests in global pack order."""
    return xxhash.xxh3_128_hexdigest(struct.pack("<q", len(digests)) + b"".join(digests))


def chain(previous: str, step: int, digest: str) -> str:
    """Hex of the chain's head after ``step``; ``previous`` is "" before the first step."""
    return xxhash.xxh3_128_hexdigest(f"{previous}:{step}:{digest}".encode())
