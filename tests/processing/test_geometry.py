from __future__ import annotations

import dataclasses
import random

import pytest

from vltrain.processing.geometry import FixedGeometry, TiledGeometry
from vltrain.processing.tiling import TileGrid, TilingRule, candidate_grids

TILED = TiledGeometry(
    tile_side=384, tokens_per_side=14, max_tiles=9, max_tiled_images=2, rule=TilingRule.effective
)


def spelled_out(columns: int, rows: int) -> str:
    """The sequence of one image, a character a token: p patch, n newline, s separator."""
    text = ""
    for _ in range(14):
        text += "p" * 14 + "n"
    text += "s"
    for _ in range(rows):
        for _ in range(14):
            for _ in range(columns):
                text += "p" * 14
            text += "n"
    return text


def test_every_image_costs_the_same():
    geometry = FixedGeometry(tokens_per_image=576)
    sizes = [(1, 1), (1, 4000), (4000, 1), (1024, 768)]
    for size in sizes:
        layout = geometry.layout(*size, images_in_sample=3)
        assert (layout.tokens, layout.grid, layout.squares) == (576, None, 1)


@pytest.mark.parametrize(
    ("grid", "tokens"), [((1, 1), 421), ((1, 9), 2101), ((9, 1), 1989), ((3, 3), 2017)]
)
def test_tokens_of_a_grid(grid, tokens):
    columns, rows = grid
    assert TILED.tokens_of(TileGrid(columns=columns, rows=rows)) == tokens


def test_tokens_are_those_of_the_sequence_spelled_out():
    for grid in candidate_grids(18):
        assert TILED.tokens_of(grid) == len(spelled_out(grid.columns, grid.rows))


def test_a_tiled_image_by_its_size():
    layout = TILED.layout(1024, 768, images_in_sample=1)
    assert layout.grid == TileGrid(columns=3, rows=2)
    assert (layout.squares, layout.tokens) == (7, 211 + 28 * 43)


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1)])
def test_a_line_of_pixels_is_one_tile(size):
    assert TILED.layout(*size, images_in_sample=1).tokens == 421


def test_more_than_two_images_are_not_tiled():
    layouts = [TILED.layout(1024, 1024, images_in_sample=n) for n in (1, 2, 3, 30)]
    assert [layout.tokens for layout in layouts] == [2017, 2017, 421, 421]
    assert [layout.squares for layout in layouts] == [10, 10, 2, 2]  # the whole image is kept


def test_a_square_costs_at_most_211_tokens_and_at_least_196():
    """So that a limit of tokens bounds the squares too."""
    draw = random.Random(0)
    for _ in range(1000):
        size = (draw.randint(1, 5000), draw.randint(1, 5000))
        layout = TILED.layout(*size, images_in_sample=1)
        assert 196 < layout.tokens / layout.squares <= 211


def test_digest_fields_tell_geometries_apart():
    assert FixedGeometry(tokens_per_image=576).digest_fields() == {
        "kind": "fixed",
        "tokens_per_image": 576,
    }
    assert TILED.digest_fields() == {
        "kind": "tiled",
        "tile_side": 384,
        "tokens_per_side": 14,
        "max_tiles": 9,
        "max_tiled_images": 2,
        "rule": "effective",
    }
    others = [
        dataclasses.replace(TILED, tile_side=96),
        dataclasses.replace(TILED, tokens_per_side=4),
        dataclasses.replace(TILED, max_tiles=18),
        dataclasses.replace(TILED, max_tiled_images=0),
        dataclasses.replace(TILED, rule=TilingRule.least_padding),
    ]
    digests = [geometry.digest_fields() for geometry in (TILED, *others)]
    assert all(digests.count(one) == 1 for one in digests)
