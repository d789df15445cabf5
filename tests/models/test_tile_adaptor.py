from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vltrain.errors import DataError
from vltrain.models.config import Activation, SiglipConfig
from vltrain.models.tile_adaptor import TileAdaptor, layout_index, pixel_shuffle
from vltrain.models.vision import SiglipTower
from vltrain.processing.geometry import TiledGeometry
from vltrain.processing.tiling import TileGrid, TilingRule, candidate_grids

SO400M = SiglipConfig(
    image_size=384,
    patch_size=14,
    width=1152,
    layers=27,
    heads=16,
    ffn=4304,
    activation=Activation.gelu_tanh,
)
SMALL = SiglipConfig(image_size=24, patch_size=8, width=4, layers=1, heads=1, ffn=8)  # 3 x 3


def adaptor(width: int = 6) -> TileAdaptor:
    torch.manual_seed(0)
    return TileAdaptor(SMALL, width=width)


def features(grids: list[tuple[int, int]]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    squares = sum(1 + columns * rows for columns, rows in grids)
    return {"siglip": torch.randn(squares, 9, 4), "grids": torch.tensor(grids).view(-1, 2)}


def restated(module: TileAdaptor, inputs: dict[str, Tensor]) -> Tensor:
    """One token at a time, by place: where it lies in its square, where that lies in the grid."""

    def token(square: Tensor, row: int, column: int) -> Tensor:
        values = []
        for channel in range(4):
            for down in range(2):
                for right in range(2):
                    y, x = 2 * row + down, 2 * column + right
                    inside = y < 3 and x < 3
                    values.append(square[y * 3 + x, channel] if inside else torch.tensor(0.0))
        return module.linear2(F.gelu(module.linear1(torch.stack(values))))

    squares = list(inputs["siglip"])
    sequence = []
    for columns, rows in inputs["grids"].tolist():
        thumbnail, squares = squares[0], squares[1:]
        for row in range(2):
            sequence += [token(thumbnail, row, column) for column in range(2)]
            sequence.append(module.image_newline)
        sequence.append(module.view_separator)
        for row in range(2 * rows):
            for column in range(2 * columns):
                tile = squares[row // 2 * columns + column // 2]
                sequence.append(token(tile, row % 2, column % 2))
            sequence.append(module.image_newline)
        squares = squares[columns * rows :]
    assert not squares
    return torch.stack(sequence)


def test_the_tower_has_the_published_size():
    with torch.device("meta"):
        tower = SiglipTower(SO400M)
    assert sum(p.numel() for p in tower.parameters()) == 412_987_248
    assert SO400M.side == 27


def test_the_adaptor_at_full_size():
    with torch.device("meta"):
        module = TileAdaptor(SO400M, width=1280)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert shapes == {
        "linear1.weight": (1280, 4608),
        "linear1.bias": (1280,),
        "linear2.weight": (1280, 1280),
        "linear2.bias": (1280,),
        "image_newline": (1280,),
        "view_separator": (1280,),
    }


def test_the_learned_vectors_start_at_the_released_scale():
    torch.manual_seed(0)
    module = TileAdaptor(SMALL, width=4096)
    for vector in (module.image_newline, module.view_separator):
        assert vector.detach().norm().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    "grids", [[(1, 1)], [(3, 2)], [(2, 3), (1, 1)], [(1, 4), (0, 0), (2, 1)], [(9, 1)]]
)
def test_every_token_is_where_a_slow_restatement_puts_it(grids):
    module, inputs = adaptor(), features(grids)
    torch.testing.assert_close(module(inputs), restated(module, inputs))


def test_the_shuffle_is_channel_major():
    """Two channels of a 2 x 2 square: each channel's four patches are neighbours."""
    square = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]]])
    assert pixel_shuffle(square, side=2).tolist() == [[[1, 2, 3, 4, 10, 20, 30, 40]]]


def test_an_odd_side_is_filled_with_zeros_right_and_below():
    square = torch.arange(1.0, 10.0).view(1, 9, 1)
    assert pixel_shuffle(square, side=3).tolist() == [
        [[1, 2, 4, 5], [3, 0, 6, 0], [7, 8, 0, 0], [9, 0, 0, 0]]
    ]


def test_there_are_as_many_tokens_as_the_geometry_counts():
    rule = TilingRule.effective
    geometry = TiledGeometry(
        tile_side=384, tokens_per_side=14, max_tiles=18, max_tiled_images=2, rule=rule
    )
    for grid in candidate_grids(18):
        index = layout_index(torch.tensor([[grid.columns, grid.rows]]), side=14)
        assert len(index) == geometry.tokens_of(grid)
    assert geometry.tokens_of(TileGrid(columns=0, rows=0)) == len(
        layout_index(torch.tensor([[0, 0]]), side=14)
    )


def test_no_image_has_no_tokens():
    assert adaptor()(features([])).shape == (0, 6)


def test_a_thumbnail_alone_reaches_every_parameter():
    """What a micro-batch without images runs, so that each gets a gradient."""
    module = adaptor()
    module(features([(0, 0)])).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_squares_that_do_not_fit_the_grids():
    inputs = features([(2, 1)])
    inputs["grids"] = torch.tensor([[2, 2]])
    with pytest.raises(DataError, match="3 squares were encoded, but the grids of 1 images need 5"):
        adaptor()(inputs)
