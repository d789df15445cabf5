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

from collections.abc import Sequence


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
    if not _images_can_bind(tokens, images, capacity_tokens, capacity_images):
        images, capacity_images = [0] * len(tokens), 0
    before_all = capacity_tokens + 1
    rank = [-t - before_all * first for t, first in zip(tokens, goes_first, strict=True)]
    by_size = sorted(range(len(tokens)), key=rank.__getitem__)
    packs: list[list[int]] = []
    # open_packs[k][room]: packs that can take k more images and `room` more tokens.
    open_packs: list[dict[int, list[int]]] = [{} for _ in range(capacity_images + 1)]
    rooms_in_use = [0] * (capacity_images + 1)

    for piece in by_size:
        size, need = tokens[piece], images[piece]
        room, slots = -1, -1
        for free_images in range(need, capacity_images + 1):
            fitting = rooms_in_use[free_images] >> size
            if fitting:
                tightest = size + (fitting & -fitting).bit_length() - 1
                if room < 0 or tightest < room:
                    room, slots = tightest, free_images
        if room < 0:
            pack, room, slots = len(packs), capacity_tokens, capacity_images
            packs.append([piece])
        else:
            same_room = open_packs[slots][room]
            pack = same_room.pop()
            if not same_room:
                del open_packs[slots][room]
                rooms_in_use[slots] ^= 1 << room
            packs[pack].append(piece)
        room, slots = room - size, slots - need
        if room:
            open_packs[slots].setdefault(room, []).append(pack)
            rooms_in_use[slots] |= 1 << room
    return packs


def _images_can_bind(
    tokens: Sequence[int], images: Sequence[int], capacity_tokens: int, capacity_images: int
) -> bool:
    """Whether a pack within its tokens could hold too many images: not where even a pack of the
    pieces densest in images could not (576 tokens an image, 4096 a pack, 8 images)."""
    pairs = zip(tokens, images, strict=True)
    return any(n * capacity_tokens >= (capacity_images + 1) * t for t, n in pairs if n)
