"""Each source as an endless, shuffled stream of its samples, readable at any position.

In: a source's piece table and the run's seed. Out: for a position (how many samples the source has
already given) the sample that comes next. Epoch e is positions [e * n, (e + 1) * n): every sample
comes exactly once in each. A *block* is some neighbouring samples of one shard, so that reading
stays local; an epoch is a seeded order of blocks. The blocks that follow each other in it are open
side by side, as many as there are *lanes*: the samples of such a *stretch* come in one seeded
order. Nothing is remembered but the position, one integer, so seeking costs one stretch of sizes
and a restored stream is the stream.

Cost: 12 bytes per block and 4 more for each epoch held (at most two): with 256 samples in a block
0.08 bytes per sample. A stretch (128 blocks of 256) takes under 2 MB and about 4 ms to read, and
as many sidecars to open as it has shards; two are held. Rejected: a permutation of all samples
(random reads over all shards, 8 bytes per sample); a shuffle buffer (state as large as the buffer,
order dependent on timing); dealing blocks to lanes that each keep a window of their own (the same
shuffle, but a restore has to plan every lane's window: 370 ms instead of one window's 6).

Randomness is the raw output of Philox keyed by xxh3-128 of the words that name the choice: the same
on every machine and every numpy version (numpy promises raw streams, not those of ``Generator``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
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

STRETCHES_PER_EPOCH = 4
"""A source has at least so many stretches per epoch, or has the smallest blocks."""

_EPOCHS_HELD = 2
_STRETCHES_HELD = 2
_SIZES_AT_A_TIME = 128


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
    """A permutation of ``range(count)`` (int64) that depends on ``key`` alone.

    Sorts random numbers whose low bits are replaced by their places: none are equal, so that every
    sorting algorithm, the fastest included, gives the same order.
    """
    name = "\x1f".join(str(word) for word in key)
    bits = np.random.Philox(key=xxhash.xxh3_128_intdigest(name.encode())).random_raw(count)
    places = np.uint64((1 << max(count - 1, 0).bit_length()) - 1)
    tagged = (bits & ~places) | np.arange(count, dtype=np.uint64)
    return (np.sort(tagged) & places).astype(np.int64)


def block_size(num_samples: int, *, largest: int, lanes: int) -> int:
    """Samples per block: ``largest``, or fewer where a small source would have too few
    stretches."""
    wanted = -(-num_samples // (lanes * STRETCHES_PER_EPOCH))
    return min(largest, max(SMALLEST_BLOCK_SAMPLES, wanted))


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """The samples of some blocks in the order in which they come.

    Arrays over pieces: piece (int64), tokens, supervised, image_tokens, images (int32). first_row:
    int64 (samples + 1,), the pieces of sample i are rows first_row[i]:first_row[i + 1].
    sample_tokens, sample_units: int64 (samples,). A sample of which the source draws nothing has no
    rows.
    """

    piece: np.ndarray
    tokens: np.ndarray
    supervised: np.ndarray
    image_tokens: np.ndarray
    images: np.ndarray
    first_row: np.ndarray
    sample_tokens: np.ndarray
    sample_units: np.ndarray

    @property
    def num_samples(self) -> int:
        return len(self.sample_tokens)


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
        lanes: int,
        unit: RatioUnit,
    ) -> None:
        self.table = table
        self.samples_per_epoch = table.num_samples
        self._key = (seed, table.name)
        self._unit = unit
        self._block_first, self._block_count = _cut_shards(table.shard_samples, block_samples)
        stretches = -(-len(self._block_count) // lanes)
        # Blocks of an epoch's order that end each stretch: as even as they can be.
        self._edges = np.arange(stretches + 1) * len(self._block_count) // stretches
        self._epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._stretches: OrderedDict[tuple[int, int], Stretch] = OrderedDict()

    def at(self, position: int) -> tuple[Stretch, int]:
        """The stretch that holds ``position``, and the position's place in it."""
        epoch, within = divmod(position, self.samples_per_epoch)
        _, first_sample = self._epoch(epoch)
        number = int(np.searchsorted(first_sample, within, side="right")) - 1
        return self._stretch(epoch, number), within - int(first_sample[number])

    def sizes(self, position: int) -> Iterator[tuple[int, int, int]]:
        """(pieces, tokens, units) of the samples from ``position`` on, without end."""
        while True:
            stretch, offset = self.at(position)
            end = min(offset + _SIZES_AT_A_TIME, stretch.num_samples)
            yield from zip(
                np.diff(stretch.first_row[offset : end + 1]).tolist(),
                stretch.sample_tokens[offset:end].tolist(),
                stretch.sample_units[offset:end].tolist(),
                strict=True,
            )
            position += end - offset

    def read(self, position: int, count: int) -> list[tuple[Stretch, slice]]:
        """The rows of samples ``position`` to ``position + count``, stretch by stretch."""
        parts: list[tuple[Stretch, slice]] = []
        while count > 0:
            stretch, offset = self.at(position)
            taken = min(count, stretch.num_samples - offset)
            rows = slice(int(stretch.first_row[offset]), int(stretch.first_row[offset + taken]))
            parts.append((stretch, rows))
            position += taken
            count -= taken
        return parts

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Order of the blocks in an epoch, and each stretch's first sample in it (and the end)."""
        if epoch not in self._epochs:
            order = random_order(len(self._block_count), *self._key, "blocks", epoch)
            before = np.concatenate(([0], np.cumsum(self._block_count[order], dtype=np.int64)))
            self._epochs[epoch] = (order.astype(np.int32), before[self._edges])
            while len(self._epochs) > _EPOCHS_HELD:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _stretch(self, epoch: int, number: int) -> Stretch:
        if (epoch, number) not in self._stretches:
            self._stretches[epoch, number] = self._shuffled(epoch, number)
            while len(self._stretches) > _STRETCHES_HELD:
                self._stretches.popitem(last=False)
        return self._stretches[epoch, number]

    def _shuffled(self, epoch: int, number: int) -> Stretch:
        order, _ = self._epoch(epoch)
        blocks = order[self._edges[number] : self._edges[number + 1]]
        parts = [
            self.table.pieces_of_samples(first, count)
            for first, count in zip(
                self._block_first[blocks].tolist(), self._block_count[blocks].tolist(), strict=True
            )
        ]
        counts = self._block_count[blocks]
        # Samples as read: numbered through the blocks of the stretch.
        shift = np.cumsum(counts, dtype=np.int64) - counts - self._block_first[blocks]
        sample = np.concatenate(
            [part.sample + by for part, by in zip(parts, shift.tolist(), strict=True)]
        )
        pieces = np.bincount(sample, minlength=int(counts.sum()))
        first_as_read = np.cumsum(pieces) - pieces

        comes = random_order(len(pieces), *self._key, "samples", epoch, number)
        first_row = np.concatenate(([0], np.cumsum(pieces[comes])))
        rows = np.repeat(first_as_read[comes] - first_row[:-1], pieces[comes])
        rows += np.arange(len(rows))

        def column(name: str) -> np.ndarray:
            return np.concatenate([getattr(part, name) for part in parts])[rows]

        tokens, supervised = column("tokens"), column("supervised")
        units = piece_units(self._unit, tokens=tokens, supervised=supervised)
        return Stretch(
            piece=column("piece"),
            tokens=tokens,
            supervised=supervised,
            image_tokens=column("image_tokens"),
            images=column("images"),
            first_row=first_row,
            sample_tokens=_sum_rows(tokens, first_row),
            sample_units=_sum_rows(units, first_row),
        )


def _sum_rows(values: np.ndarray, first_row: np.ndarray) -> np.ndarray:
    """Sum of ``values`` over the rows of each sample."""
    running = np.concatenate(([0], np.cumsum(values, dtype=np.int64)))
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
