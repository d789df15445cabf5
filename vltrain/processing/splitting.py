"""A long document's ids in, where to cut it out.

Pieces are as long as the limit allows, but a cut prefers a paragraph's or line's end, then a
sentence's, then any token, in the upper half of the piece; never inside an image's placeholders,
and not in the middle of a character while another place exists. The last piece is never a mere
scrap. One vectorised pass; cutting a 100,000-token document takes about a millisecond.
"""

from __future__ import annotations

import numpy as np

from vltrain.errors import RecordFault


def split_points(
    *, cost: np.ndarray, quality: np.ndarray, limit: int, image_starts: np.ndarray, max_images: int
) -> tuple[tuple[int, int], ...]:
    """Half-open pieces covering 0..n.

    cost: int (n,), what each token counts against ``limit``. quality: int (n,), how good a cut
    *before* token i is; 0 forbids it. image_starts: rising, the first token of each image; a piece
    holds at most ``max_images``. Raises RecordFault ``too_long`` where no allowed cut keeps the
    limits.
    """
    assert limit > 0, limit
    n = len(cost)
    spent = np.concatenate([[0], np.cumsum(cost, dtype=np.int64)])  # spent[p]: cost of 0..p
    begun = np.zeros(n + 1, dtype=np.int64)  # begun[p]: images of 0..p
    begun[np.asarray(image_starts, dtype=np.int64) + 1] = 1
    begun = np.cumsum(begun)
    pieces: list[tuple[int, int]] = []
    start = 0
    while True:
        # The furthest end that keeps both limits.
        furthest = _last_within(spent, spent[start] + limit)
        furthest = min(furthest, _last_within(begun, begun[start] + max_images))
        if furthest == n:
            break
        half = int(spent[start] + spent[furthest]) // 2
        low, high = int(np.searchsorted(spent, half, side="left")), furthest
        if spent[n] - spent[start] > limit:
            # Leave at least a quarter of a piece for the last one.
            high = min(high, _last_within(spent, spent[n] - limit // 4))
        end = _best_cut(quality, low=max(start + 1, low), high=high)
        if end is None:
            end = _best_cut(quality, low=start + 1, high=furthest)
        if end is None:
            raise RecordFault(
                "too_long",
                f"nowhere to cut tokens {start} to {n} into pieces of {limit} tokens and "
                f"{max_images} images",
            )
        pieces.append((start, end))
        start = end
    pieces.append((start, n))
    return tuple(pieces)


def _last_within(sums: np.ndarray, most: int) -> int:
    """The last place whose running sum is at most ``most``."""
    return int(np.searchsorted(sums, most, side="right")) - 1


def _best_cut(quality: np.ndarray, *, low: int, high: int) -> int | None:
    """The best, then last, cut of low..high (both included)."""
    candidates = quality[low : high + 1]
    best = int(candidates.max(initial=0))
    return low + int(np.flatnonzero(candidates == best)[-1]) if best else None
