from __future__ import annotations

import io
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vltrain.errors import RecordFault
from vltrain.processing import images
from vltrain.processing.images import decode_square, probe_size, square_layout

PAD = (122, 116, 104)


def stored(image: Image.Image, image_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()


def photo(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def decode(data: bytes, side: int = 32, mode="exact", rounding="official") -> np.ndarray:
    return decode_square(data, side=side, pad_color=PAD, rounding=rounding, mode=mode)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_probe_reads_the_size_of_each_format(image_format):
    assert probe_size(stored(photo(40, 30), image_format)) == (40, 30)


def test_probe_needs_the_header_only():
    data = stored(photo(640, 480))
    assert probe_size(data[:64]) == (640, 480)


@pytest.mark.parametrize(
    ("size", "layout"),
    [
        ((1024, 1024), (1024, 1024, 0, 0)),
        ((640, 480), (1024, 768, 0, 128)),
        ((3, 2), (1024, 682, 0, 171)),  # int(682.67): truncated, not rounded
        ((1, 4000), (14, 1024, 505, 0)),
        ((4000, 1), (1024, 14, 0, 505)),
        ((1, 1), (1024, 1024, 0, 0)),
    ],
)
def test_square_layout_as_published(size, layout):
    assert square_layout(*size, side=1024, rounding="official") == layout


@pytest.mark.parametrize(
    ("size", "layout"),
    [
        ((3, 2), (1024, 683, 0, 170)),  # round(682.67)
        ((512, 257), (1024, 514, 0, 255)),
        ((2048, 1001), (1024, 500, 0, 262)),  # 500.5: to the even one
        ((2048, 1003), (1024, 502, 0, 261)),  # 501.5: to the even one
        ((1, 4000), (14, 1024, 505, 0)),
    ],
)
def test_square_layout_as_transformers_rounds(size, layout):
    assert square_layout(*size, side=1024, rounding="transformers") == layout
    # Nothing else of it differs from the released layout.
    left_out = square_layout(*size, side=1024, rounding="official")
    assert all(abs(a - b) <= 1 for a, b in zip(layout, left_out, strict=True))


def _shorts(rounding: str) -> list[int]:
    """Short sides of pictures 1000 wide in a square of 384, by height."""
    return [square_layout(1000, h, side=384, rounding=rounding)[1] for h in range(37, 1001)]


def test_both_roundings_against_whole_number_arithmetic():
    heights = range(37, 1001)  # below, the least of 14 pixels holds
    assert _shorts("official") == [h * 384 // 1000 for h in heights]
    assert _shorts("transformers") == [(2 * h * 384 + 1000) // 2000 for h in heights]


def test_layout_of_a_side_below_the_shortest_side():
    assert square_layout(100, 1, side=8, rounding="official") == (8, 8, 0, 0)


def test_square_is_bicubic_inside_and_pad_colour_outside():
    image = photo(64, 48)
    square = decode(stored(image))
    assert square.shape == (32, 32, 3)
    assert square.dtype == np.uint8
    expected = np.asarray(image.resize((32, 24), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(square[4:28], expected)
    assert (square[:4] == PAD).all()
    assert (square[28:] == PAD).all()


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1)])
def test_extreme_ratios_keep_fourteen_pixels(size):
    square = decode(stored(Image.new("RGB", size, (255, 0, 0))))
    red = (square == (255, 0, 0)).all(axis=2)
    assert red.sum() == 14 * 32


def test_transparency_shows_the_pad_colour():
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((10, 200, 30, 255), (0, 0, 32, 16))
    square = decode(stored(image))
    assert (square[0, 0] == (10, 200, 30)).all()
    assert (square[31, 0] == PAD).all()


def test_transparent_palette_and_grey_with_alpha():
    palette = Image.new("P", (32, 32), 0)
    palette.putpalette([255, 255, 255, 1, 2, 3])
    assert (decode(stored(palette, transparency=0)) == PAD).all()
    assert (decode(stored(Image.new("LA", (32, 32), (7, 0)))) == PAD).all()
    assert (decode(stored(Image.new("LA", (32, 32), (7, 255)))) == 7).all()


@pytest.mark.parametrize(
    ("image", "image_format", "expected"),
    [
        (Image.new("L", (32, 32), 9), "PNG", (9, 9, 9)),
        (Image.new("1", (32, 32), 1), "PNG", (255, 255, 255)),
        (Image.fromarray(np.full((32, 32), 0x1234, dtype=np.uint16)), "PNG", (0x12,) * 3),
        (Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
        (Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (Image.new("LA", (32, 32), (9, 255)), "PNG", (9, 9, 9)),
        (Image.new("F", (32, 32), 0.5), "TIFF", (0, 0, 0)),
    ],
)
def test_every_mode_ends_as_rgb(image, image_format, expected):
    assert (decode(stored(image, image_format)) == expected).all()


def test_an_opaque_palette_shows_its_colours():
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([9, 9, 9, 10, 200, 30])
    assert (decode(stored(palette)) == (10, 200, 30)).all()


def test_sixteen_bits_a_channel_keep_the_high_byte():
    """A PNG by hand: Pillow writes none of this kind."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">HHH", 0x0A0F, 0xC8F0, 0x1E01) * 32
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    data += chunk(b"IDAT", zlib.compress(row * 32)) + chunk(b"IEND", b"")
    assert (decode(data) == (0x0A, 0xC8, 0x1E)).all()


def test_half_transparency_by_hand():
    """200 at alpha 51 (a fifth) over 100: 0.2 * 200 + 0.8 * 100."""
    image = Image.new("RGBA", (32, 32), (200, 200, 200, 51))
    square = decode_square(
        stored(image), side=32, pad_color=(100, 100, 100), rounding="official", mode="exact"
    )
    assert (square == 120).all()


def test_float_greys_are_stretched():
    ramp = np.linspace(-1, 3, 32, dtype=np.float32)[None].repeat(32, axis=0)
    square = decode(stored(Image.fromarray(ramp), "TIFF"))
    assert (square[0, 0] == 0).all()
    assert (square[0, 31] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_to_size_and_pixels(orientation):
    upright = photo(64, 32)
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    lying = upright.transpose(inverse[orientation]) if orientation in inverse else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    for image_format in ("PNG", "JPEG", "WEBP"):
        options = {"exif": exif} | ({} if image_format == "PNG" else {"quality": 95})
        data = stored(lying, image_format, **options)
        assert probe_size(data) == (64, 32)
        difference = decode(data).astype(int) - decode(stored(upright)).astype(int)
        assert np.abs(difference).mean() <= (0 if image_format == "PNG" else 3)


def test_scaled_decoding_is_close_and_of_the_same_shape():
    data = stored(photo(512, 384), "JPEG", quality=95)
    exact, scaled = decode(data, 64), decode(data, 64, "scaled")
    assert exact.shape == scaled.shape
    assert np.abs(exact.astype(int) - scaled.astype(int)).mean() < 2
    png = stored(photo(512, 384))
    np.testing.assert_array_equal(decode(png, 64), decode(png, 64, "scaled"))


def test_simplejpeg_gives_pillows_pixels(monkeypatch):
    """Where it is used and where it is not (greys, CMYK, turned, cut off)."""
    simplejpeg = pytest.importorskip("simplejpeg", reason="it is the extra 'fast'")
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb = photo(512, 380)
    taken = [
        stored(rgb, "JPEG", subsampling=subsampling, progressive=progressive)
        for subsampling in (0, 1, 2)
        for progressive in (False, True)
    ] + [stored(photo(*size), "JPEG") for size in ((511, 255), (129, 600), (64, 48), (33, 9))]
    left = [
        stored(rgb.convert("L"), "JPEG"),
        stored(rgb.convert("CMYK"), "JPEG"),
        stored(rgb, "JPEG", exif=exif),
    ]
    used = []

    def decode_jpeg(data, **options):
        used.append(data)
        return simplejpeg.decode_jpeg(data, **options)

    monkeypatch.setattr(images, "simplejpeg", SimpleNamespace(decode_jpeg=decode_jpeg))
    fast = [decode(data, 64, "scaled") for data in taken + left]
    assert used == taken
    with pytest.raises(RecordFault) as fault:
        decode(taken[0][:2000], 64, "scaled")
    assert fault.value.reason == "truncated"
    decode(taken[0], 64, "exact")
    assert used == [*taken, taken[0][:2000]]

    monkeypatch.setattr(images, "simplejpeg", None)
    for data, found in zip(taken + left, fast, strict=True):
        np.testing.assert_array_equal(decode(data, 64, "scaled"), found)


def test_scaled_decoding_turns_with_the_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = stored(photo(512, 100), "JPEG", quality=95, exif=exif)
    exact, scaled = decode(data, 64), decode(data, 64, "scaled")
    assert np.abs(exact.astype(int) - scaled.astype(int)).mean() < 2


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"this is not an image", "none of JPEG"),
        (b"\x89PNG\r\n\x1a\n" + b"garbage" * 9, "none of|broken header"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of"),
    ],
)
def test_not_an_image(data, words):
    for use in (probe_size, decode):
        with pytest.raises(RecordFault, match=words) as fault:
            use(data)
        assert fault.value.reason == "not_an_image"


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_truncated(image_format):
    data = stored(photo(64, 48), image_format)
    with pytest.raises(RecordFault) as fault:
        decode(data[: len(data) * 2 // 3])
    assert fault.value.reason in ("truncated", "not_an_image")
    if image_format in ("PNG", "JPEG", "BMP"):
        assert fault.value.reason == "truncated"


def test_damaged_pixels_are_a_fault():
    data = bytearray(stored(photo(64, 48)))
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    with pytest.raises(RecordFault):
        decode(bytes(data))


@pytest.mark.parametrize("side", [10_000, 60_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_by_the_header(side):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x")
    with pytest.raises(RecordFault) as fault:
        probe_size(data)
    assert fault.value.reason == "too_large"


def test_no_format_that_starts_other_programs():
    assert not {"EPS", "WMF", "PDF"} & set(images.FORMATS)
