"""Each source as an endless, shuffled stream of its samples, readable at any position.

In: a source's piece table and the run's seed. Out: for a position (how many samples the source has
already given) the sample that comes next. Epoch e is positions [e * n, (e + 1) * n): every sample
comes exactly once in each. An epoch is a seeded order of *blocks* (neighbouring samples of one
shard, so that reading stays local), and a block is a seeded order of its samples. Nothing is
remembered but the position, one integer, so seeking is O(log blocks) and a restored stream is the
stream.

Cost: 12 bytes per block and 12 more for each epoch held (at most three), with 256 samples in a
block about 0.2 bytes per sample. Rejected: a permutation of all samples (random reads, 8 bytes per
sample); a shuffle buffer (state as large as the buffer, order dependent on timing); dealing blocks
to lanes beforehand (lanes drift apart and a source's epochs smear over each other).

Randomness is the raw output of Philox keyed by xxh3-128 of the words that name the choice: the same
on every machine and every numpy version (numpy promises raw streams, not those of ``Generator``).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import xxhash

from vltrain.batch import Modality
from vltrain.data.config import RatioUnit
from vltrain.errors import DataError

SMALLEST_BLOCK_SAMPLES = 16
"""Blocks are never made smaller than this: below it, opening a block costs more than its
samples."""

BLOCKS_PER_LANE = 4
"""A source gives every lane at least so many blocks per epoch, or has the smallest blocks."""

_EPOCHS_HELD = 3


class PieceColumns(Protocol):
    """Pieces of neighbouring samples, as parallel arrays of one length, in sample order."""

    @property
    def piece(self) -> np.ndarray: ...
    @property
    def sample(self) -> np.ndarray: ...
    @property
    def tokens(self) -> np.ndarray: ...
    @property
    def supervised(self) -> np.ndarray: ...
    @property
    def image_tokens(self) -> np.ndarray: ...
    @property
    def images(self) -> np.ndarray: ...


class PieceTable(Protocol):
    """What the plan knows of a source: sizes, never bytes. Samples are numbered through all
    shards."""

    @property
    def name(self) -> str: ...
    @property
    def modality(self) -> Modality: ...
    @property
    def num_samples(self) -> int: ...
    @property
    def num_pieces(self) -> int: ...
    @property
    def digest(self) -> str: ...
    @property
    def shard_samples(self) -> list[int]: ...
    def pieces_of_samples(self, first: int, count: int, /) -> PieceColumns: ...


def random_order(count: int, *key: str | int) -> np.ndarray:
    """A permutation of ``range(count)`` (int64) that depends on ``key`` alone."""
    name = "\x1f".join(str(word) for word in key)
    bits = np.random.Philox(key=xxhash.xxh3_128_intdigest(name.encode()))
    return np.argsort(bits.random_raw(count), kind="stable")


def block_size(num_samples: int, *, largest: int, lanes: int) -> int:
    """Samples per block: ``largest``, or fewer where a small source would give a lane too few
    blocks."""
    wanted = -(-num_samples // (lanes * BLOCKS_PER_LANE))
    return min(largest, max(SMALLEST_BLOCK_SAMPLES, wanted))


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """The samples of one block in the order in which they come.

    Arrays over pieces (int64): piece, tokens, supervised, image_tokens, images. first_row: int64
    (samples + 1,), the pieces of sample i are rows first_row[i]:first_row[i + 1]. Lists over
    samples: sample_pieces, sample_tokens, sample_units. A sample of which the source draws nothing
    has no rows.
    """

    piece: np.ndarray
    tokens: np.ndarray
    supervised: np.ndarray
    image_tokens: np.ndarray
    images: np.ndarray
    first_row: np.ndarray
    sample_pieces: list[int]
    sample_tokens: list[int]
    sample_units: list[int]


def piece_units(unit: RatioUnit, *, tokens: np.ndarray, supervised: np.ndarray) -> np.ndarray:
    """What each piece counts in the mixture (a part of a long text is a sample of its own)."""
    if unit is RatioUnit.tokens:
        return tokens
    if unit is RatioUnit.supervised_tokens:
        return supervised
    return np.ones_like(tokens)


class SourceStream:
    """The endless stream of one source."""

    def __init__(
        self,
        table: PieceTable,
        *,
        seed: int,
        block_samples: int,
        unit: RatioUnit,
        held_samples: int,
    ) -> None:
        """``held_samples``: blocks of about so many samples are kept, so that a window that was
        chosen sample by sample is not fetched again to be packed."""
        self.table = table
        self.samples_per_epoch = table.num_samples
        self._key = (seed, table.name)
        self._unit = unit
        self._block_first, self._block_count = _cut_shards(table.shard_samples, block_samples)
        self._held_blocks = 2 + held_samples // block_samples
        self._epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._blocks: OrderedDict[tuple[int, int], Block] = OrderedDict()

    def at(self, position: int) -> tuple[Block, int]:
        """The block that holds ``position``, and the position's place in it."""
        epoch, within = divmod(position, self.samples_per_epoch)
        order, ends = self._epoch(epoch)
        turn = int(np.searchsorted(ends, within, side="right"))
        number = int(order[turn])
        block = self._block(epoch, number)
        return block, within - (int(ends[turn]) - int(self._block_count[number]))

    def read(self, position: int, count: int) -> list[tuple[Block, slice]]:
        """The rows of samples ``position`` to ``position + count``, block by block."""
        parts: list[tuple[Block, slice]] = []
        while count > 0:
            block, offset = self.at(position)
            taken = min(count, len(block.sample_pieces) - offset)
            rows = slice(int(block.first_row[offset]), int(block.first_row[offset + taken]))
            parts.append((block, rows))
            position += taken
            count -= taken
        return parts

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Order of the blocks in an epoch, and the number of samples up to each block's end."""
        if epoch not in self._epochs:
            order = random_order(len(self._block_count), *self._key, "blocks", epoch)
            order = order.astype(np.int32)
            self._epochs[epoch] = (order, np.cumsum(self._block_count[order], dtype=np.int64))
            while len(self._epochs) > _EPOCHS_HELD:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _block(self, epoch: int, number: int) -> Block:
        if (epoch, number) not in self._blocks:
            self._blocks[epoch, number] = self._shuffled_block(epoch, number)
            while len(self._blocks) > self._held_blocks:
                self._blocks.popitem(last=False)
        return self._blocks[epoch, number]

    def _shuffled_block(self, epoch: int, number: int) -> Block:
        first, count = int(self._block_first[number]), int(self._block_count[number])
        columns = self.table.pieces_of_samples(first, count)
        place = np.empty(count, dtype=np.int64)  # of each sample in the shuffled block
        place[random_order(count, *self._key, "samples", epoch, number)] = np.arange(count)
        place_of_row = place[np.asarray(columns.sample, dtype=np.int64) - first]
        rows = np.argsort(place_of_row, kind="stable")

        tokens = np.asarray(columns.tokens)[rows].astype(np.int64)
        supervised = np.asarray(columns.supervised)[rows].astype(np.int64)
        units = piece_units(self._unit, tokens=tokens, supervised=supervised)
        sample_pieces = np.bincount(place_of_row, minlength=count)
        first_row = np.concatenate(([0], np.cumsum(sample_pieces)))
        return Block(
            piece=np.asarray(columns.piece)[rows].astype(np.int64),
            tokens=tokens,
            supervised=supervised,
            image_tokens=np.asarray(columns.image_tokens)[rows].astype(np.int64),
            images=np.asarray(columns.images)[rows].astype(np.int64),
            first_row=first_row,
            sample_pieces=sample_pieces.tolist(),
            sample_tokens=_sum_rows(tokens, first_row).tolist(),
            sample_units=_sum_rows(units, first_row).tolist(),
        )


def _sum_rows(values: np.ndarray, first_row: np.ndarray) -> np.ndarray:
    """Sum of ``values`` over the rows of each sample."""
    running = np.concatenate(([0], np.cumsum(values)))
    return np.diff(running[first_row])


def _cut_shards(shard_samples: list[int], block_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """First sample (int64) and number of samples (int32) of every block; none crosses a shard."""
    firsts, counts = [], []
    start = 0
    for samples in shard_samples:
        blocks = -(-samples // block_samples)
        edges = start + np.arange(blocks + 1, dtype=np.int64) * samples // max(blocks, 1)
        firsts.append(edges[:-1])
        counts.append(np.diff(edges).astype(np.int32))
        start += samples
    if start == 0:
        raise DataError("a source has shards but no sample in any of them; see prepare's report")
    return np.concatenate(firsts), np.concatenate(counts)
