from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image, ImageOps

from vltrain.errors import RecordFault
from vltrain.processing.tile_images import decode_tiles, scaled_size
from vltrain.processing.tiling import TileGrid

PAD = (127, 127, 127)


def stored(image: Image.Image, image_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()


def photo(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def tiles_of(data: bytes, grid: tuple[int, int], *, side: int = 32, mode="exact") -> np.ndarray:
    columns, rows = grid
    return decode_tiles(
        data, grid=TileGrid(columns=columns, rows=rows), side=side, pad_color=PAD, mode=mode
    )


@pytest.mark.parametrize("size", [(100, 70), (70, 100), (20, 20), (300, 41), (33, 64)])
def test_squares_are_pillows_padded_image_and_its_crops(size):
    image = photo(*size)
    squares = tiles_of(stored(image), (3, 2))
    expected = [ImageOps.pad(image, (32, 32), color=PAD)]
    whole = ImageOps.pad(image, (96, 64), color=PAD)
    for top in (0, 32):
        for left in (0, 32, 64):
            expected.append(whole.crop((left, top, left + 32, top + 32)))
    np.testing.assert_array_equal(squares, np.stack([np.asarray(e) for e in expected]))


def test_tiles_come_row_by_row_after_the_thumbnail():
    quarters = np.array([[10, 20, 30], [40, 50, 60]], dtype=np.uint8)
    image = Image.fromarray(quarters.repeat(16, axis=0).repeat(16, axis=1)).convert("RGB")
    squares = tiles_of(stored(image), (3, 2), side=16)
    assert squares[1:, 8, 8, 0].tolist() == [10, 20, 30, 40, 50, 60]
    assert squares[0, 0].tolist() == [[127, 127, 127]] * 16  # 48 x 32 leaves a margin of 2 rows


@pytest.mark.parametrize(("size", "at"), [((1, 4000), (0, 16)), ((4000, 1), (16, 0))])
def test_a_line_of_pixels_keeps_one(size, at):
    squares = tiles_of(stored(Image.new("RGB", size, (255, 0, 0))), (1, 1))
    row, column = at
    assert squares.shape == (2, 32, 32, 3)
    for square in squares:
        assert square[row, column].tolist() == [255, 0, 0]
        assert (square == 127).all(axis=2).sum() == 32 * 32 - 32


def test_sizes_are_rounded_as_pillow_does():
    draw = random.Random(0)
    room = (192, 288)
    for _ in range(100):
        size = (draw.randint(1, 300), draw.randint(1, 300))
        pillow = ImageOps.contain(Image.new("L", size), room).size
        assert scaled_size(*size, room=room) == tuple(max(1, side) for side in pillow), size


def test_orientation_is_applied_before_tiling():
    upright = photo(90, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = stored(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    np.testing.assert_array_equal(tiles_of(turned, (3, 2)), tiles_of(stored(upright), (3, 2)))


def test_scaled_decoding_is_near_and_never_below_the_rectangle():
    data = stored(photo(1600, 1200), "JPEG", quality=95)
    exact = tiles_of(data, (3, 2), side=64).astype(int)
    scaled = tiles_of(data, (3, 2), side=64, mode="scaled").astype(int)
    assert 0 < np.abs(exact - scaled).max() <= 12


def test_bytes_that_are_no_image_are_a_fault():
    with pytest.raises(RecordFault, match="none of JPEG"):
        tiles_of(b"no image at all", (1, 1))
