"""Windows: about a thousand neighbouring samples of the blended stream, packed by themselves.

``Drawer`` blends the streams of a group: again and again the source that is furthest behind its
weight gives its next sample (start-time fair queueing: the source with the least units / weight).
What it hands out is only where each source's run of samples starts and how long it is.
``open_window`` turns such runs into packs. Filling a new window and restoring an old one are the
same call with the same runs, which is why a restored plan cannot differ.

Where a group holds both modalities, the drawer first asks which modality is owed (``Balance`` with
the share of the step that the window's packs will reach), and the packs leave the window in two
shuffled queues, richer and poorer in language than the window, so that the plan can keep the share
pack by pack and not only window by window.

Cost: 5-8 microseconds per sample, best-fit included. Packs are shuffled because best-fit decreasing
emits them by length. Rejected: drawing sources at random (see mixture), one long window per epoch
(memory, and a cursor as long as the epoch).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vltrain.batch import PieceRef
from vltrain.data.config import PackingConfig, RatioUnit
from vltrain.data.mixture import Balance
from vltrain.data.order import Block, SourceStream, piece_units, random_order
from vltrain.data.packing import best_fit_decreasing
from vltrain.errors import DataError

ShareOfPack = Callable[[int], int]
"""Language share (millionths) that the n-th pack of a window will be held to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A source as a member of a group. ``source`` is its position in the recipe; ``sample_limit``
    the samples after which it is spent (inf: never)."""

    source: int
    stream: SourceStream
    weight: float
    language: bool
    sample_limit: float


class Drawer:
    """Decides, sample by sample, what the next window of a group holds.

    State, all integers: positions (samples that each member has given), taken (its units), balance
    (modalities; used only where the group holds both).
    """

    def __init__(self, members: Sequence[Member], *, packing: PackingConfig) -> None:
        self.members = members
        self.positions = [0] * len(members)
        self.taken = [0] * len(members)
        self.balance = Balance()
        self._packing = packing

    def draw(self, share_of_pack: ShareOfPack, *, num_pieces: int) -> tuple[list[int], list[int]]:
        """Runs of the next window of about ``num_pieces`` pieces: per member, its first position
        and number of samples.

        Shorter than a window, or empty, where a finite source is spent: the blend cannot go on
        without it, so it ends there.
        """
        starts = list(self.positions)
        queues = self._queues()
        holds_both = bool(queues[False] and queues[True])
        open_blocks: list[tuple[Block, int] | None] = [None] * len(self.members)
        pieces = tokens = empty_in_a_row = share = 0

        while not self._is_full(pieces, tokens, wanted=num_pieces):
            if holds_both:
                share = share_of_pack(self._packs_so_far(pieces, tokens))
                queue = queues[self.balance.language_comes_next(share)]
            else:
                queue = queues[False] or queues[True]
            index = queue[0][1]
            member, position = self.members[index], self.positions[index]
            if position >= member.sample_limit:
                break
            block, offset = open_blocks[index] or member.stream.at(position)
            is_last = offset + 1 == len(block.sample_pieces)
            open_blocks[index] = None if is_last else (block, offset + 1)
            self.positions[index] = position + 1
            if not block.sample_pieces[offset]:
                empty_in_a_row += 1
                _refuse_endless_emptiness(member, empty_in_a_row)
                continue
            empty_in_a_row = 0
            pieces += block.sample_pieces[offset]
            tokens += block.sample_tokens[offset]
            # A sample that counts nothing (no supervised token) still moves its source on.
            units = block.sample_units[offset] or 1
            taken = self.taken[index] = self.taken[index] + units
            if holds_both:
                language_units = units if member.language else 0
                self.balance.count(share, units=units, language_units=language_units)
            heapq.heapreplace(queue, (taken / member.weight, index))
        counts = [now - start for now, start in zip(self.positions, starts, strict=True)]
        return starts, counts

    def _queues(self) -> tuple[list[tuple[float, int]], list[tuple[float, int]]]:
        """Heaps of (units / weight, member): of multimodal members, of language members."""
        queues: tuple[list[tuple[float, int]], list[tuple[float, int]]] = ([], [])
        for i, member in enumerate(self.members):
            heapq.heappush(queues[member.language], (self.taken[i] / member.weight, i))
        return queues

    def _packs_so_far(self, pieces: int, tokens: int) -> int:
        return tokens // self._packing.sequence_length if self._packing.enabled else pieces

    def _is_full(self, pieces: int, tokens: int, *, wanted: int) -> bool:
        """Enough pieces, and as many tokens as fill whole packs but for a little room.

        Without the second, a window's last pack is half empty on average: 0.2 % of the fill. The
        little room (a quarter to half a pack) is what best-fit leaves over in a whole window of
        texts; with less, it would have to open one more pack.
        """
        if pieces < wanted or not self._packing.enabled:
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


@dataclass(slots=True)
class Window:
    """The packs of one window.

    Columns over pieces, as plain lists (a record per piece would keep the garbage collector busy
    with all that is in flight): source, piece, tokens, supervised, image_tokens, images, units,
    language. queues: packs (lists of rows), richer and poorer in language than the window as a
    whole; all are in the first where it holds one modality. taken: packs that left each queue.
    """

    source: list[int]
    piece: list[int]
    tokens: list[int]
    supervised: list[int]
    image_tokens: list[int]
    images: list[int]
    units: list[int]
    language: list[bool]
    queues: tuple[list[list[int]], list[list[int]]]
    taken: list[int]

    @property
    def is_spent(self) -> bool:
        return self.taken[0] >= len(self.queues[0]) and self.taken[1] >= len(self.queues[1])

    def next_pack(self, *, rich: bool) -> list[int]:
        """Rows of the next pack, from the wanted queue while it lasts."""
        wanted = 0 if rich else 1
        queue = wanted if self.taken[wanted] < len(self.queues[wanted]) else 1 - wanted
        pack = self.queues[queue][self.taken[queue]]
        self.taken[queue] += 1
        return pack

    def ref(self, row: int) -> PieceRef:
        return PieceRef(
            source=self.source[row],
            piece=self.piece[row],
            tokens=self.tokens[row],
            supervised=self.supervised[row],
            image_tokens=self.image_tokens[row],
            images=self.images[row],
        )


def open_window(
    members: Sequence[Member],
    *,
    starts: Sequence[int],
    counts: Sequence[int],
    packing: PackingConfig,
    unit: RatioUnit,
    shuffle_key: tuple[str | int, ...],
) -> Window:
    """Read the runs, pack them, shuffle the packs. A pure function of its arguments."""
    window = Window(
        source=[],
        piece=[],
        tokens=[],
        supervised=[],
        image_tokens=[],
        images=[],
        units=[],
        language=[],
        queues=([], []),
        taken=[0, 0],
    )
    for member, start, count in zip(members, starts, counts, strict=True):
        for block, rows in member.stream.read(start, count):
            tokens, supervised = block.tokens[rows], block.supervised[rows]
            window.source += [member.source] * len(tokens)
            window.piece += block.piece[rows].tolist()
            window.tokens += tokens.tolist()
            window.supervised += supervised.tolist()
            window.image_tokens += block.image_tokens[rows].tolist()
            window.images += block.images[rows].tolist()
            window.units += piece_units(unit, tokens=tokens, supervised=supervised).tolist()
            window.language += [member.language] * len(tokens)
    _check_fit(window, members, packing)
    packs = _pack(window, packing)
    shuffled = [packs[i] for i in random_order(len(packs), *shuffle_key).tolist()]
    window.queues = _two_queues(shuffled, window)
    return window


def _pack(window: Window, packing: PackingConfig) -> list[list[int]]:
    if not packing.enabled:
        return [[row] for row in range(len(window.piece))]
    return best_fit_decreasing(
        window.tokens,
        images=window.images,
        # Images make coarse pieces: they go first, and text fills what they leave.
        goes_first=[not is_language for is_language in window.language],
        capacity_tokens=packing.sequence_length,
        capacity_images=packing.max_images,
    )


def _two_queues(packs: list[list[int]], window: Window) -> tuple[list[list[int]], list[list[int]]]:
    """Packs with at least the window's language share, and the others; order kept within each."""
    if len(set(window.language)) < 2:
        return packs, []
    of_language = [u * lang for u, lang in zip(window.units, window.language, strict=True)]
    total, total_language = sum(window.units), sum(of_language)
    queues: tuple[list[list[int]], list[list[int]]] = ([], [])
    for pack in packs:
        pack_language = sum(of_language[row] for row in pack)
        is_poor = pack_language * total < total_language * sum(window.units[row] for row in pack)
        queues[is_poor].append(pack)
    return queues


def _check_fit(window: Window, members: Sequence[Member], packing: PackingConfig) -> None:
    on_top = packing.image_tokens_on_top
    bounded = window.tokens
    if on_top:
        bounded = [n - m for n, m in zip(window.tokens, window.image_tokens, strict=True)]
    most_tokens, most_images = max(bounded, default=0), max(window.images, default=0)
    if most_tokens <= packing.sequence_length and most_images <= packing.max_images:
        return
    too_long = most_tokens > packing.sequence_length
    row = bounded.index(most_tokens) if too_long else window.images.index(most_images)
    name = next(m.stream.table.name for m in members if m.source == window.source[row])
    raise DataError(
        f"source '{name}', piece {window.piece[row]}: {bounded[row]} {'text ' if on_top else ''}"
        f"tokens and {window.images[row]} images, but a sequence holds {packing.sequence_length} "
        f"tokens (data.packing.sequence_length) and {packing.max_images} images "
        "(data.packing.max_images). The token sidecar was made for other limits: run "
        "launch/prepare.py with this config."
    )
