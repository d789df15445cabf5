"""Image size in, number of image tokens out: the only place that knows how many tokens an image
costs.

The index, the token sidecar, the plan, the encoder and the model's own count all go back to
``layout``; a second formula anywhere else would let them disagree by one and corrupt silently.
Costs nothing to speak of. A geometry is a small frozen record whose ``digest_fields`` enter the
sidecar's key.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

from vltrain.processing.tiling import (
    ONE_TILE,
    TileGrid,
    TilingRule,
    candidate_grids,
    choose_grid,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLayout:
    """What one image becomes. grid: tiles beside the first square, None where there are none.
    tokens: placeholders in the sequence."""

    grid: TileGrid | None
    tokens: int

    @property
    def shape(self) -> tuple[int, int]:
        """Columns and rows of tiles; (0, 0) where there are none."""
        return (self.grid.columns, self.grid.rows) if self.grid is not None else (0, 0)

    @property
    def squares(self) -> int:
        """Squares that the vision encoder sees: the whole image, and its tiles."""
        return 1 + (self.grid.tiles if self.grid is not None else 0)


class Geometry(Protocol):
    """How an image of some size becomes image tokens."""

    def layout(self, width: int, height: int, *, images_in_sample: int) -> ImageLayout:
        """Of one image of ``width`` x ``height`` pixels (as seen, after orientation), in a sample
        with ``images_in_sample`` images (all of a document, also where it is cut)."""
        ...

    @property
    def most_tokens(self) -> int:
        """Placeholders of the costliest image."""
        ...

    def digest_fields(self) -> dict[str, str | int]:
        """Everything that the counts depend on, JSON-able."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedGeometry:
    """DeepSeek-VL: every image is one padded square, and so always the same number of tokens (576
    at full size, paper 3.1)."""

    tokens_per_image: int

    def __post_init__(self) -> None:
        assert self.tokens_per_image > 0, self.tokens_per_image

    def layout(self, width: int, height: int, *, images_in_sample: int) -> ImageLayout:
        assert min(width, height) > 0, (width, height)
        assert images_in_sample > 0, images_in_sample
        return ImageLayout(grid=None, tokens=self.tokens_per_image)

    @property
    def most_tokens(self) -> int:
        return self.tokens_per_image

    def digest_fields(self) -> dict[str, str | int]:
        return {"kind": "fixed", "tokens_per_image": self.tokens_per_image}


@dataclass(frozen=True, kw_only=True, slots=True)
class TiledGeometry:
    """DeepSeek-VL2: the whole image as one square (the thumbnail), and a grid of tiles.

    tile_side: pixels. tokens_per_side: of a square, after the pixel shuffle (14 at full size).
    max_tiled_images: in a sample with more images, each has one tile. In the sequence: the
    thumbnail's rows, each with a newline token; a separator; then the rows of the whole grid
    stitched together, each with a newline token (released code: the new tokens come after the
    adaptor's MLP, where the paper has them before it).
    """

    tile_side: int
    tokens_per_side: int
    max_tiles: int
    max_tiled_images: int
    rule: TilingRule

    def __post_init__(self) -> None:
        assert min(self.tile_side, self.tokens_per_side, self.max_tiles) > 0, self

    def layout(self, width: int, height: int, *, images_in_sample: int) -> ImageLayout:
        assert images_in_sample > 0, images_in_sample
        grid = ONE_TILE
        if images_in_sample <= self.max_tiled_images:
            grid = choose_grid(
                width,
                height,
                candidates=_candidates(self.max_tiles),
                tile_side=self.tile_side,
                rule=self.rule,
            )
        return ImageLayout(grid=grid, tokens=self.tokens_of(grid))

    def tokens_of(self, grid: TileGrid) -> int:
        """Placeholders of an image in ``grid`` (421 for one tile, 2017 for 3 x 3 at full size)."""
        side = self.tokens_per_side
        thumbnail = side * (side + 1)
        return thumbnail + 1 + grid.rows * side * (grid.columns * side + 1)

    @property
    def most_tokens(self) -> int:
        return max(self.tokens_of(grid) for grid in _candidates(self.max_tiles))

    def digest_fields(self) -> dict[str, str | int]:
        return {
            "kind": "tiled",
            "tile_side": self.tile_side,
            "tokens_per_side": self.tokens_per_side,
            "max_tiles": self.max_tiles,
            "max_tiled_images": self.max_tiled_images,
            "rule": self.rule.value,
        }


_candidates = functools.cache(candidate_grids)
