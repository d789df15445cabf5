from __future__ import annotations

import numpy as np
import pytest

from vltrain.errors import RecordFault
from vltrain.processing.splitting import split_points


def split(quality, limit, cost=None, images=(), max_images=9):
    quality = np.asarray(quality)
    cost = np.ones(len(quality), dtype=np.int64) if cost is None else np.asarray(cost)
    return split_points(
        cost=cost, quality=quality, limit=limit, image_starts=images, max_images=max_images
    )


def test_short_documents_stay_whole():
    assert split([0, 2, 2, 2], 4) == ((0, 4),)


def test_the_best_place_in_the_upper_half_wins_and_the_last_of_equals():
    quality = [0, 9, 2, 2, 2, 3, 2, 3, 2, 2, 2, 2, 2, 2]
    # The first piece may end at 4..8: the 3 at 7 is the last best; the 9 at 1 is too early.
    assert split(quality, 8) == ((0, 7), (7, 14))


def test_the_last_piece_is_no_scrap():
    pieces = split([0] + [2] * 8, 8)
    assert pieces == ((0, 7), (7, 9))


def test_never_in_a_forbidden_place():
    quality = np.full(40, 2)
    quality[[0, *range(11, 20)]] = 0  # a span of ten tokens from 10 on
    assert split(quality, 18) == ((0, 10), (10, 28), (28, 40))


def test_a_span_longer_than_the_limit_is_a_fault():
    quality = [0, 2] + [0] * 10 + [2, 2]
    with pytest.raises(RecordFault, match="nowhere to cut") as fault:
        split(quality, 8)
    assert fault.value.reason == "too_long"


def test_free_tokens_cost_nothing():
    cost = [1, 0, 0, 0, 1, 1, 1, 1]
    assert split([0, 2, 0, 0, 2, 2, 2, 2], 4, cost) == ((0, 7), (7, 8))


def test_no_piece_has_more_images_than_allowed():
    # Images (two tokens each) at 1, 4, 7, 10 and 12: cuts before 12 and before 7 at the latest.
    quality = np.full(15, 2)
    images = [1, 4, 7, 10, 12]
    quality[[0, *(start + 1 for start in images)]] = 0
    assert split(quality, 99, images=images, max_images=2) == ((0, 7), (7, 12), (12, 15))
    assert split(quality, 99, images=images, max_images=5) == ((0, 15),)
    quality[5 + 1] = 4  # a better place in the upper half of what two images allow
    assert split(quality, 99, images=images, max_images=2) == ((0, 6), (6, 12), (12, 15))
    on_top = np.ones(15, dtype=np.int64)
    on_top[[place for start in images for place in (start, start + 1)]] = 0
    assert split(quality, 99, on_top, images, 2) == ((0, 6), (6, 12), (12, 15))


def test_both_limits_hold_at_once():
    quality = np.full(30, 2)
    quality[0] = 0
    # One-token images at 3, 4 and 5: the images end the first piece, the length the later ones.
    pieces = split(quality, 10, images=[3, 4, 5], max_images=2)
    assert pieces == ((0, 5), (5, 15), (15, 25), (25, 30))


def test_an_image_where_none_is_allowed_is_a_fault():
    with pytest.raises(RecordFault, match="into pieces of 9 tokens and 0 images"):
        split([0, 2, 2], 9, images=[1], max_images=0)


@pytest.mark.parametrize("limit", range(4, 60))
def test_pieces_cover_everything_within_the_limit(limit):
    rng = np.random.default_rng(limit)
    n = int(rng.integers(limit + 1, 300))
    quality = rng.integers(1, 5, n)
    quality[0] = 0
    pieces = split(quality, limit)
    assert [p[0] for p in pieces] == [0, *[p[1] for p in pieces[:-1]]]
    assert pieces[-1][1] == n
    assert all(0 < end - start <= limit for start, end in pieces)
    assert min(end - start for start, end in pieces) >= limit // 4
