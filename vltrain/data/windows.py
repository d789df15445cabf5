"""Windows: about a thousand neighbouring samples of the blended stream, packed by themselves.

In: runs of the sources' streams (``blend``). Out: shuffled packs. Filling a new window and
restoring an old one are the same call with the same runs, which is why a restored plan cannot
differ. No pack outlives its window, so there is no half-filled pack to remember.

The packs leave a window in two queues. In a window of one modality one of them is empty. Where the
modalities share packs, they are those poorer and richer in language than the window, so that the
plan can keep the share pack by pack and not only window by window. Where text tops up multimodal
packs, they are the multimodal packs and the texts that fitted into none.

Cost: 4-6 microseconds per sample, best-fit included. Packs are shuffled because best-fit decreasing
emits them by length. Rejected: one long window per epoch (memory, and a cursor as long as the
epoch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from vltrain.batch import PieceRef
from vltrain.data.blend import Member, Run
from vltrain.data.config import PackingConfig, RatioUnit
from vltrain.data.order import piece_units, random_order
from vltrain.data.packing import best_fit_decreasing, top_up
from vltrain.errors import DataError


class Holds(str, Enum):
    """What a window holds, which decides how it is packed and queued."""

    one = "one modality"
    both = "both modalities, sharing packs"
    topped_up = "multimodal samples, and texts to top up their packs"


@dataclass(slots=True)
class Window:
    """The packs of one window.

    Columns over pieces, as plain lists (a record per piece would keep the garbage collector busy
    with all that is in flight): source, piece, tokens, supervised, image_tokens, images, units,
    language. queues: packs (lists of rows); see the module for which are in which.
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
    runs: Sequence[Run],
    holds: Holds,
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
    )
    for index, start, count in runs:
        member = members[index]
        for part, rows in member.stream.read(start, count):
            tokens, supervised = part.tokens[rows], part.supervised[rows]
            window.source += [member.source] * len(tokens)
            window.piece += part.piece[rows].tolist()
            window.tokens += tokens.tolist()
            window.supervised += supervised.tolist()
            window.image_tokens += part.image_tokens[rows].tolist()
            window.images += part.images[rows].tolist()
            window.units += piece_units(unit, tokens=tokens, supervised=supervised).tolist()
            window.language += [member.language] * len(tokens)
    _check_fit(window, members, packing)
    packs, texts_left_over = _pack(window, holds=holds, packing=packing)
    packs = _shuffled(packs, *shuffle_key)
    if holds is Holds.both:
        window.queues = _by_share(packs, window)
    elif holds is Holds.topped_up:
        window.queues = packs, _shuffled(texts_left_over, *shuffle_key, "texts")
    else:
        window.queues = packs, []
    return window


def _pack(
    window: Window, *, holds: Holds, packing: PackingConfig
) -> tuple[list[list[int]], list[list[int]]]:
    """Packs; and packs of texts that topped up none."""
    if not packing.enabled:
        return [[row] for row in range(len(window.piece))], []
    if holds is Holds.topped_up:
        return top_up(
            window.tokens,
            images=window.images,
            is_text=window.language,
            capacity_tokens=packing.sequence_length,
            capacity_images=packing.max_images,
        )
    packs = best_fit_decreasing(
        window.tokens,
        images=window.images,
        # Images make coarse pieces: they go first, and text fills what they leave.
        goes_first=[not is_language for is_language in window.language],
        capacity_tokens=packing.sequence_length,
        capacity_images=packing.max_images,
    )
    return packs, []


def _shuffled(packs: list[list[int]], *key: str | int) -> list[list[int]]:
    return [packs[i] for i in random_order(len(packs), *key).tolist()]


def _by_share(packs: list[list[int]], window: Window) -> tuple[list[list[int]], list[list[int]]]:
    """Packs with less than the window's language share, and the others; order kept within each."""
    of_language = [u * lang for u, lang in zip(window.units, window.language, strict=True)]
    total, total_language = sum(window.units), sum(of_language)
    queues: tuple[list[list[int]], list[list[int]]] = ([], [])
    for pack in packs:
        pack_language = sum(of_language[row] for row in pack)
        is_rich = pack_language * total >= total_language * sum(window.units[row] for row in pack)
        queues[is_rich].append(pack)
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
