"""Which pieces of a window share a sequence.

In: tokens and images of each piece of one window. Out: lists of piece numbers, one list per pack.
Best-fit decreasing: pieces go from large to small, each into the fullest pack that still takes it,
by tokens and by images. No piece is cut and no pack outlives its window, so a window's packs depend
on nothing but the window (what makes a cursor of a few KB enough).

Cost: about 1-2 microseconds per piece. Packs are found by how much room they have: the rooms in use
are the set bits of one integer, and the best fit is its lowest set bit at or above the piece's
size. Rejected: next-fit (83 % full where this is 99.7 %); open packs carried over windows (state);
sorted containers (the same packs, slower).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def best_fit_decreasing(
    tokens: Sequence[int],
    *,
    images: Sequence[int],
    goes_first: Sequence[bool],
    capacity_tokens: int,
    capacity_images: int,
) -> list[list[int]]:
    """Packs of piece numbers; every piece in exactly one, each pack within both capacities.

    ``goes_first`` marks the pieces that are placed before all others (by size among themselves).
    Every piece must fit into an empty pack (the caller has checked).
    """
    before_all = capacity_tokens + 1
    rank = [-t - before_all * first for t, first in zip(tokens, goes_first, strict=True)]
    packs = _Packs(tokens, images=images, capacities=(capacity_tokens, capacity_images))
    packs.place(sorted(range(len(tokens)), key=rank.__getitem__))
    return packs.packs


def top_up(
    tokens: Sequence[int],
    *,
    images: Sequence[int],
    is_text: Sequence[bool],
    capacity_tokens: int,
    capacity_images: int,
) -> tuple[list[list[int]], list[list[int]]]:
    """(packs of the pieces that are no text, topped up with text; packs of the texts that fitted
    into none of them).

    The first are as many as without any text: text only takes the room that is left.
    """
    capacities = (capacity_tokens, capacity_images)
    by_size = sorted(range(len(tokens)), key=lambda piece: -tokens[piece])
    multimodal = _Packs(tokens, images=images, capacities=capacities)
    multimodal.place(piece for piece in by_size if not is_text[piece])
    left_over = multimodal.place_in_open(piece for piece in by_size if is_text[piece])
    texts = _Packs(tokens, images=images, capacities=capacities)
    texts.place(left_over)
    return multimodal.packs, texts.packs


class _Packs:
    """Packs that are being filled."""

    def __init__(
        self, tokens: Sequence[int], *, images: Sequence[int], capacities: tuple[int, int]
    ) -> None:
        self.packs: list[list[int]] = []
        self._capacity_tokens, capacity_images = capacities
        if not _images_can_bind(tokens, images, *capacities):
            images, capacity_images = [0] * len(tokens), 0
        self._tokens, self._images, self._capacity_images = tokens, images, capacity_images
        # _open[k][room]: packs that can take k more images and `room` more tokens.
        self._open: list[dict[int, list[int]]] = [{} for _ in range(capacity_images + 1)]
        self._rooms_in_use = [0] * (capacity_images + 1)

    def place(self, pieces: Iterable[int]) -> None:
        """Put each piece into the fullest open pack that takes it, or into one of its own."""
        for piece in pieces:
            if not self._fits_in_open(piece):
                self.packs.append([piece])
                self._keep_open(
                    len(self.packs) - 1,
                    room=self._capacity_tokens - self._tokens[piece],
                    slots=self._capacity_images - self._images[piece],
                )

    def place_in_open(self, pieces: Iterable[int]) -> list[int]:
        """Put pieces into open packs alone; those that fit into none are given back."""
        return [piece for piece in pieces if not self._fits_in_open(piece)]

    def _fits_in_open(self, piece: int) -> bool:
        size, need = self._tokens[piece], self._images[piece]
        room, slots = -1, -1
        for free_images in range(need, self._capacity_images + 1):
            fitting = self._rooms_in_use[free_images] >> size
            if fitting:
                tightest = size + (fitting & -fitting).bit_length() - 1
                if room < 0 or tightest < room:
                    room, slots = tightest, free_images
        if room < 0:
            return False
        same_room = self._open[slots][room]
        pack = same_room.pop()
        if not same_room:
            del self._open[slots][room]
            self._rooms_in_use[slots] ^= 1 << room
        self.packs[pack].append(piece)
        self._keep_open(pack, room=room - size, slots=slots - need)
        return True

    def _keep_open(self, pack: int, *, room: int, slots: int) -> None:
        if room:
            self._open[slots].setdefault(room, []).append(pack)
            self._rooms_in_use[slots] |= 1 << room


def _images_can_bind(
    tokens: Sequence[int], images: Sequence[int], capacity_tokens: int, capacity_images: int
) -> bool:
    """Whether a pack within its tokens could hold too many images: not where even a pack of the
    pieces densest in images could not (576 tokens an image, 4096 a pack, 8 images)."""
    pairs = zip(tokens, images, strict=True)
    return any(n * capacity_tokens >= (capacity_images + 1) * t for t, n in pairs if n)
