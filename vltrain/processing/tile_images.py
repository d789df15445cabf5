"""Stored image bytes and a grid in, uint8 squares out: the thumbnail, then the tiles row by row.

As in DeepSeek-VL2's released processor: the whole image once into one square, and once into the
grid's rectangle, each scaled (bicubic, also up) to fit and centred on the pad colour; the
rectangle is cut into tiles. A side that would scale to less than a pixel keeps one (1 x 4000
pixels; the released code stops there). Costs one decoding and two resizes. Rejected: cutting in
the trainer, which would have to be handed rectangles of many shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

from vltrain.batch import StoredImage
from vltrain.processing.images import decode_square, decode_upright
from vltrain.processing.tiling import TileGrid


def squares_of(
    image: StoredImage, *, side: int, pad_color: Sequence[int], mode: Literal["exact", "scaled"]
) -> np.ndarray:
    """The squares of an encoded image: uint8 (n, side, side, 3), RGB; one where it has no tiles
    (DeepSeek-VL's padded square). Raises RecordFault as ``decode_square`` does."""
    columns, rows = image.grid
    if columns:
        grid = TileGrid(columns=columns, rows=rows)
        return decode_tiles(image.data, grid=grid, side=side, pad_color=pad_color, mode=mode)
    return decode_square(image.data, side=side, pad_color=pad_color, mode=mode)[None]


def decode_tiles(
    data: bytes,
    *,
    grid: TileGrid,
    side: int,
    pad_color: Sequence[int],
    mode: Literal["exact", "scaled"],
) -> np.ndarray:
    """Decode to squares: uint8 (1 + tiles, side, side, 3), RGB.

    ``mode`` as in ``decode_square``; "scaled" never goes below the size in the grid's rectangle.
    Raises RecordFault as ``decode_square`` does.
    """
    room = (grid.columns * side, grid.rows * side)

    def scaled(width: int, height: int) -> tuple[int, int]:
        return scaled_size(width, height, room=room)

    least = scaled if mode == "scaled" else None
    image, size = decode_upright(data, background=pad_color, least=least)
    squares = np.empty((1 + grid.tiles, side, side, 3), dtype=np.uint8)
    squares[0] = _fitted(image, size=size, room=(side, side), pad_color=pad_color)
    whole = _fitted(image, size=size, room=room, pad_color=pad_color)
    tiles = whole.reshape(grid.rows, side, grid.columns, side, 3).swapaxes(1, 2)
    squares[1:] = tiles.reshape(grid.tiles, side, side, 3)
    return squares


def scaled_size(width: int, height: int, *, room: tuple[int, int]) -> tuple[int, int]:
    """The image's size when it is scaled to fit into ``room`` (width, height), in pixels; rounded
    as Pillow's ``ImageOps.pad`` does."""
    room_width, room_height = room
    if width / height > room_width / room_height:
        return room_width, max(1, round(height / width * room_width))
    if width / height < room_width / room_height:
        return max(1, round(width / height * room_height)), room_height
    return room


def _fitted(
    image: Image.Image, *, size: tuple[int, int], room: tuple[int, int], pad_color: Sequence[int]
) -> np.ndarray:
    """uint8 (height, width, 3) of ``room``: the image scaled, and centred on the pad colour. size:
    at full resolution (``image`` may be decoded smaller)."""
    width, height = scaled_size(*size, room=room)
    canvas = np.empty((room[1], room[0], 3), dtype=np.uint8)
    canvas[:] = np.asarray(pad_color, dtype=np.uint8)
    left, top = round((room[0] - width) * 0.5), round((room[1] - height) * 0.5)
    scaled = image.resize((width, height), Image.Resampling.BICUBIC)
    canvas[top : top + height, left : left + width] = np.asarray(scaled)
    return canvas
