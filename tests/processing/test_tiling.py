from __future__ import annotations

import random

import numpy as np
import pytest

from vltrain.processing.tiling import TileGrid, TilingRule, candidate_grids, choose_grid

NINE = candidate_grids(9)
EIGHTEEN = candidate_grids(18)
# Width and height in pixels, as a released config.json lists them.
RELEASED = [
    *((384, 384), (384, 768), (768, 384), (384, 1152), (1152, 384), (384, 1536), (1536, 384)),
    *((768, 768), (384, 1920), (1920, 384), (384, 2304), (2304, 384), (768, 1152), (1152, 768)),
    *((384, 2688), (2688, 384), (384, 3072), (3072, 384), (768, 1536), (1536, 768), (384, 3456)),
    *((3456, 384), (1152, 1152)),
]


def chosen(width: int, height: int, rule=TilingRule.effective, candidates=NINE) -> tuple[int, int]:
    grid = choose_grid(width, height, candidates=candidates, tile_side=384, rule=rule)
    return grid.columns, grid.rows


def restated(width: int, height: int, rooms: list[tuple[int, int]], *, paper: bool):
    """The rule over all candidates at once: a stable sort instead of a running best."""
    room = np.array(rooms, dtype=np.int64)
    fit = (room / np.array([width, height])).min(axis=1)
    scaled = (width * fit).astype(np.int64) * (height * fit).astype(np.int64)
    area = room.prod(axis=1)
    if paper:
        order = np.argsort(area - scaled, kind="stable")
    else:
        effective = np.minimum(scaled, width * height)
        order = np.lexsort((np.arange(len(room)), area - effective, -effective))
    columns, rows = room[order[0]] // 384
    return int(columns), int(rows)


def random_sizes(count: int) -> list[tuple[int, int]]:
    """Half of them of ordinary photos, half of any shape from 1 to 5000 pixels a side."""
    draw = random.Random(0)
    return [
        (draw.randint(100, 3000), draw.randint(100, 3000))
        if n % 2
        else (round(5000 ** draw.random()), round(5000 ** draw.random()))
        for n in range(count)
    ]


def test_candidates_are_the_released_ones_in_their_order():
    assert [(g.columns * 384, g.rows * 384) for g in NINE] == RELEASED


def test_the_larger_set_has_every_grid_of_at_most_18_tiles():
    assert len(EIGHTEEN) == len(set(EIGHTEEN)) == 58
    assert max(g.tiles for g in EIGHTEEN) == 18
    assert EIGHTEEN[:23] == NINE


@pytest.mark.parametrize(
    ("size", "effective", "least_padding"),
    [
        ((1024, 768), (3, 2), (1, 1)),
        ((1024, 1024), (3, 3), (1, 1)),
        ((384, 384), (1, 1), (1, 1)),
        ((100, 100), (1, 1), (1, 1)),
        ((385, 384), (2, 1), (1, 1)),
        ((800, 400), (3, 2), (2, 1)),
        ((3000, 400), (8, 1), (7, 1)),
        ((400, 3000), (1, 8), (1, 7)),
        ((1, 4000), (1, 1), (1, 1)),  # no grid shows a whole pixel of its width
        ((4000, 1), (1, 1), (1, 1)),
    ],
)
def test_grids_of_some_sizes(size, effective, least_padding):
    assert chosen(*size) == effective
    assert chosen(*size, rule=TilingRule.least_padding) == least_padding


@pytest.mark.parametrize(
    ("candidates", "count"), [(NINE, 10_000), (EIGHTEEN, 2_000)], ids=["9", "18"]
)
def test_both_rules_agree_with_a_restatement_on_many_sizes(candidates, count):
    rooms = [(g.columns * 384, g.rows * 384) for g in candidates]
    for width, height in random_sizes(count):
        assert chosen(width, height, candidates=candidates) == restated(
            width, height, rooms, paper=False
        ), (width, height)
        assert chosen(
            width, height, rule=TilingRule.least_padding, candidates=candidates
        ) == restated(width, height, rooms, paper=True), (width, height)


def test_the_two_rules_differ_on_most_photos():
    draw = random.Random(1)
    sizes = [(draw.randint(100, 3000), draw.randint(100, 3000)) for _ in range(2000)]
    differ = sum(chosen(*s) != chosen(*s, rule=TilingRule.least_padding) for s in sizes)
    assert 0.90 < differ / len(sizes) < 0.96


def test_a_grid_counts_its_tiles():
    assert TileGrid(columns=3, rows=2).tiles == 6
