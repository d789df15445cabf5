"""The blend: which source gives its next sample.

In: the sources of the run with their weights. Out: *runs*, the stretches of each source's stream
that the next window is made of. Again and again the source that is furthest behind its weight gives
its next sample (start-time fair queueing: the source with the least units / weight). Where a window
holds both modalities, the one that is owed is asked first, with the share of the step that the
window's packs will reach.

State, all integers: how many samples each source has given, its units, and the account of the
modalities. The sources are counted once for the whole run, whichever group draws from them, so that
every sample comes once in an epoch although text may be drawn for two groups.

Cost: 1-2 microseconds per sample. Rejected: drawing sources at random (see mixture).
"""

from __future__ import annotations

import functools
import heapq
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vltrain.data.config import PackingConfig
from vltrain.data.mixture import Balance
from vltrain.data.order import SourceStream
from vltrain.errors import DataError

log = logging.getLogger(__name__)

ShareOfPack = Callable[[int], int]
"""Language share (millionths) that the n-th pack of a window will be held to."""

Run = tuple[int, int, int]
"""(member, position of its first sample, number of samples)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A source of the blend. ``source`` is its position in the recipe; ``sample_limit`` the samples
    after which it is spent (inf: never); ``leaves``: the blend goes on without it then."""

    source: int
    stream: SourceStream
    weight: float
    language: bool
    sample_limit: float
    leaves: bool


class Blend:
    """Decides, sample by sample, what the next window holds."""

    def __init__(self, members: Sequence[Member], *, packing: PackingConfig) -> None:
        self.members = members
        self.positions = [0] * len(members)
        self.taken = [0] * len(members)
        self.balance = Balance()
        self._packing = packing

    def draw_one(self, *, language: bool, num_pieces: int, whole_packs: bool) -> list[Run]:
        """Runs of one modality, about ``num_pieces`` pieces. ``whole_packs``: a few more, where
        that fills the last pack.

        Fewer, or none, where a finite source is spent: the blend cannot go on without it, so it
        ends there.
        """
        queue = self._queue(language=language)

        def is_full(pieces: int, tokens: int) -> bool:
            return self._is_full(pieces, tokens, wanted=num_pieces, whole_packs=whole_packs)

        return self._draw(lambda pieces, tokens: (queue, None), is_full=is_full)

    def draw_both(self, share_of_pack: ShareOfPack, *, num_pieces: int) -> list[Run]:
        """Runs of both modalities, held to the shares of the packs that they will fill."""
        queues = (self._queue(language=False), self._queue(language=True))
        packing = self._packing
        share_of = functools.lru_cache(maxsize=1)(share_of_pack)

        def queue_of(pieces: int, tokens: int) -> tuple[list[tuple[float, int]], int]:
            packs = tokens // packing.sequence_length if packing.enabled else pieces
            share = share_of(packs)
            return queues[self.balance.language_comes_next(share)], share

        def is_full(pieces: int, tokens: int) -> bool:
            return self._is_full(pieces, tokens, wanted=num_pieces, whole_packs=True)

        return self._draw(queue_of, is_full=is_full)

    def _draw(
        self,
        queue_of: Callable[[int, int], tuple[list[tuple[float, int]], int | None]],
        *,
        is_full: Callable[[int, int], bool],
    ) -> list[Run]:
        """``queue_of`` and ``is_full`` are asked with the pieces and tokens drawn so far; the first
        gives the queue to draw from, and the language share for the account (None: none is
        kept)."""
        starts = list(self.positions)
        sizes: dict[int, Iterator[tuple[int, int, int]]] = {}
        pieces = tokens = empty_in_a_row = 0
        while not is_full(pieces, tokens):
            queue, share = queue_of(pieces, tokens)
            if not queue:
                break
            index = queue[0][1]
            member, position = self.members[index], self.positions[index]
            if position >= member.sample_limit:
                if not member.leaves:
                    break
                self._say_that_it_leaves(member)
                heapq.heappop(queue)
                continue
            if index not in sizes:
                sizes[index] = member.stream.sizes(position)
            sample_pieces, sample_tokens, units = next(sizes[index])
            self.positions[index] = position + 1
            if not sample_pieces:
                empty_in_a_row += 1
                _refuse_endless_emptiness(member, empty_in_a_row)
                continue
            empty_in_a_row = 0
            # A sample that counts nothing (no supervised token) still moves its source on.
            units = units or 1
            if share is not None:
                language_units = units if member.language else 0
                self.balance.count(share, units=units, language_units=language_units)
            pieces += sample_pieces
            tokens += sample_tokens
            taken = self.taken[index] = self.taken[index] + units
            heapq.heapreplace(queue, (taken / member.weight, index))
        ends = zip(starts, self.positions, strict=True)
        return [(i, start, end - start) for i, (start, end) in enumerate(ends) if end > start]

    def _queue(self, *, language: bool) -> list[tuple[float, int]]:
        """Heap of (units / weight, member) of one modality, without those that have left."""
        queue = [
            (self.taken[i] / member.weight, i)
            for i, member in enumerate(self.members)
            if member.language == language
            and not (member.leaves and self.positions[i] >= member.sample_limit)
        ]
        heapq.heapify(queue)
        return queue

    def _say_that_it_leaves(self, member: Member) -> None:
        name, epoch = member.stream.table.name, member.stream.samples_per_epoch
        log.warning(
            "source '%s' has been planned %g times (data.sources.%s.max_epochs) and leaves the "
            "mix: its share goes to the other sources of its modality",
            name,
            round(member.sample_limit / epoch, 3),
            name,
        )

    def _is_full(self, pieces: int, tokens: int, *, wanted: int, whole_packs: bool) -> bool:
        """Enough pieces, and (``whole_packs``) as many tokens as fill whole packs but for a little
        room.

        Without the second, a window's last pack is half empty on average: 0.2 % of the fill. The
        little room (a quarter to half a pack) is what best-fit leaves over in a whole window of
        texts; with less, it would have to open one more pack.
        """
        if pieces < wanted or not (whole_packs and self._packing.enabled):
            return pieces >= wanted
        capacity = self._packing.sequence_length
        return capacity <= 4 * (-tokens % capacity) <= 2 * capacity or pieces >= wanted * 17 // 16


def _refuse_endless_emptiness(member: Member, empty_in_a_row: int) -> None:
    if empty_in_a_row > member.stream.samples_per_epoch:
        table = member.stream.table
        raise DataError(
            f"source '{table.name}' counts {table.num_pieces} pieces but none was found in a whole "
            "epoch: its index and token sidecar do not belong together. Prepare it again."
        )
