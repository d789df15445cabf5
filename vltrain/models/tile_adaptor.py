"""DeepSeek-VL2's adaptor: the tiles' features to the language model's width, in reading order.

In: SigLIP's features of every square (an image's thumbnail, then its tiles row by row) and each
image's grid. Out: one row per placeholder, image by image: the thumbnail's rows, a separator, then
the rows of the whole grid stitched together; each row ends with a newline. (Released code: pixel
shuffle of 2 x 2 patches, Linear, GELU, Linear; the learned newline and separator come after it,
where the paper has them before.)

Newlines, separator and order are one gather from a table of the squares' tokens and the two learned
vectors, with an index made on the CPU. Rejected: slicing and concatenating image by image, as the
released code does: some hundred small kernels for one step's images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vltrain.errors import DataError
from vltrain.models.config import SiglipConfig


class TileAdaptor(nn.Module):
    """Pixel shuffle and MLP (``linear1``, ``linear2``), ``image_newline``, ``view_separator``."""

    def __init__(self, config: SiglipConfig, *, width: int) -> None:
        super().__init__()
        self.side = config.side
        self.linear1 = nn.Linear(4 * config.width, width)
        self.linear2 = nn.Linear(width, width)
        self.image_newline = nn.Parameter(torch.randn(width) / width**0.5)
        self.view_separator = nn.Parameter(torch.randn(width) / width**0.5)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """siglip (squares, patches, w) and grids int64 (images, 2) on the CPU, each columns and
        rows (0 and 0: the thumbnail alone) -> (all tokens, language width).

        Raises DataError where the grids' squares are not as many as the features'.
        """
        squares = features["siglip"]
        grids = features["grids"]
        expected = len(grids) + int(grids.prod(dim=1).sum())
        if len(squares) != expected:
            raise DataError(
                f"{len(squares)} squares were encoded, but the grids of {len(grids)} images need "
                f"{expected}: the thumbnail and the tiles of each"
            )
        shuffled = pixel_shuffle(squares.to(self.linear1.weight.dtype), side=self.side)
        tokens = self.linear2(F.gelu(self.linear1(shuffled)))
        learned = torch.stack([self.image_newline, self.view_separator])
        table = torch.cat([tokens.flatten(0, 1), learned])
        index = layout_index(grids, side=-(-self.side // 2))
        return table.index_select(0, index.to(table.device, non_blocking=True))


def pixel_shuffle(features: Tensor, *, side: int) -> Tensor:
    """(n, side * side, w) -> (n, ceil(side / 2) ** 2, 4 w): each 2 x 2 patches become one token.
    An odd side is filled up with zeros at the right and at the bottom. Channels lie outside, the
    four patches inside (a channel's four values are neighbours), as in the published weights."""
    maps = features.transpose(1, 2).unflatten(2, (side, side))
    odd = side % 2
    return F.unfold(F.pad(maps, (0, odd, 0, odd)), kernel_size=2, stride=2).transpose(1, 2)


def layout_index(grids: Tensor, *, side: int) -> Tensor:
    """Which row of the table each placeholder gets, int64 (all tokens,).

    grids: int64 (images, 2), columns and rows. The table: the tokens of every square (``side`` x
    ``side`` each), then the newline, then the separator.
    """
    area = side * side
    newline = (len(grids) + int(grids.prod(dim=1).sum())) * area
    separator = torch.tensor([newline + 1])
    parts: list[Tensor] = []
    first = 0  # the image's first token in the table
    for columns, rows in grids.tolist():
        thumbnail = torch.arange(first, first + area).view(side, side)
        first += area
        tiles = torch.arange(first, first + columns * rows * area)
        stitched = tiles.view(rows, columns, side, side).transpose(1, 2)
        stitched = stitched.reshape(rows * side, columns * side)
        first += columns * rows * area
        parts += [_with_newlines(thumbnail, newline), separator, _with_newlines(stitched, newline)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


def _with_newlines(rows: Tensor, newline: int) -> Tensor:
    """(rows, columns) -> flat, each row with ``newline`` after it."""
    return F.pad(rows, (0, 1), value=newline).flatten()
