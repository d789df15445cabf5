"""Best-fit decreasing: hand-made packs, both budgets, every piece once, its known fill."""

from __future__ import annotations

import random

import numpy as np
import pytest
from plan_fakes import picture_sizes, text_sizes

from vltrain.data.packing import best_fit_decreasing, top_up


def pack(tokens, *, images=None, first=None, capacity=10, max_images=8):
    return best_fit_decreasing(
        tokens,
        images=images or [0] * len(tokens),
        goes_first=first or [False] * len(tokens),
        capacity_tokens=capacity,
        capacity_images=max_images,
    )


def test_largest_first_into_the_fullest_pack_that_takes_it():
    # 7 -> A(3 left); 6 -> B(4 left); 4 -> B(0); 3 -> A(0); 2 -> C.
    assert pack([2, 3, 4, 6, 7]) == [[4, 1], [3, 2], [0]]


def test_best_fit_prefers_the_tighter_pack():
    # 8 -> A(2 left), 7 -> B(3 left), 2 -> A though B has room too.
    assert pack([8, 7, 2]) == [[0, 2], [1]]


def test_images_are_a_budget_of_their_own():
    assert pack([2, 2, 2, 2], images=[1, 1, 1, 1], max_images=2) == [[0, 1], [2, 3]]
    # Text still fills packs that take no more images.
    assert pack([2, 2, 2], images=[1, 1, 0], max_images=1) == [[0], [1, 2]]


def test_a_tighter_pack_without_image_room_is_passed_over():
    # A: 6 + 2 images, 4 left; B: 5, 5 left; the 4 with an image goes to B.
    assert pack([6, 5, 4], images=[2, 0, 1], max_images=2) == [[0], [1, 2]]


def test_marked_pieces_go_first():
    assert pack([9, 3, 1], first=[False, True, False]) == [[1], [0, 2]]


def test_a_piece_as_large_as_a_pack_and_an_empty_window():
    assert pack([10, 10]) == [[0], [1]]
    assert pack([]) == []


@pytest.mark.parametrize("max_images", [0, 1, 3, 50])
def test_every_piece_once_and_no_pack_over_either_budget(max_images):
    draw = random.Random(max_images)
    tokens = [draw.randint(1, 64) for _ in range(500)]
    images = [draw.randint(0, min(2, max_images)) for _ in range(500)]
    packs = pack(tokens, images=images, capacity=64, max_images=max_images)
    assert sorted(i for p in packs for i in p) == list(range(500))
    assert max(sum(tokens[i] for i in p) for p in packs) <= 64
    assert max(sum(images[i] for i in p) for p in packs) <= max_images


def test_fill_of_one_window_of_texts_and_of_pictures():
    samples = np.arange(1024)
    for sizes, least in ((text_sizes(), 0.99), (picture_sizes(), 0.93)):
        tokens, _, images = sizes(samples)
        packs = pack(tokens.tolist(), images=images.tolist(), capacity=4096)
        assert tokens.sum() / (4096 * len(packs)) > least


def test_text_tops_up_the_fullest_pack_that_takes_it_and_the_rest_keeps_to_itself():
    # Pictures 7 -> A (3 left), 6 -> B (4 left). Texts 5 -> neither, 4 -> B, 2 -> A, 2 -> neither.
    packs, left_over = top_up(
        [7, 5, 6, 2, 4, 2],
        images=[1, 0, 1, 0, 0, 0],
        is_text=[False, True, False, True, True, True],
        capacity_tokens=10,
        capacity_images=8,
    )
    assert packs == [[0, 3], [2, 4]]
    assert left_over == [[1, 5]]
