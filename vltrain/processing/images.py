"""Stored image bytes in, size or uint8 RGB square out.

``probe_size`` reads the header only (tens of microseconds). ``decode_square`` decodes and resizes:
about 20 ms for a 640x480 JPEG to 1024 on one core. Squares stay uint8: normalising here would make
them four times larger on their way to the trainer and cost more than the decoding.

The square is made as published (DeepSeek-VL's released processor): the long side is scaled to
``side``, the short side to the truncated ratio but at least 14 pixels, bicubic with antialiasing,
centred on a square of the pad colour. Transformers' port of it rounds the ratio instead
(``rounding``), which moves an edge by one pixel in about half of all pictures. What the papers do
not say:

- Orientation in EXIF is applied, so that people stand upright; sizes are sizes as seen.
- Transparency is laid over the pad colour: what shows through is what surrounds the image. Dropping
  alpha instead (as the released code does) uncovers whatever colour lies hidden, often black under
  black ink.
- 16-bit greys keep their high byte; 32-bit integer and float greys are stretched from their own
  minimum to their maximum. Palettes, greys, CMYK and the rest are converted by Pillow. Of an
  animation, the first frame counts.
- Only the formats in ``FORMATS`` are opened: Pillow's full list includes formats that start other
  programs.

Where simplejpeg is installed, it decodes scaled JPEGs in nine tenths of Pillow's time: the same
library below, so the same pixels (a test compares them), without Pillow's own copy of them. What it
does not take as a whole, sound RGB picture is Pillow's to judge.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from vltrain.errors import RecordFault

try:
    import simplejpeg
except ImportError:  # the extra "fast"
    simplejpeg = None

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 89_478_485
"""Larger images are refused unread: a small file can unfold into any amount of memory. (Pillow's
own warning line: a 24-bit image of a quarter of a gibibyte.)"""
MIN_SHORT_SIDE = 14
"""Shortest side after scaling, in pixels (released processor)."""

Rounding = Literal["official", "transformers"]

_SWAPPED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def probe_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels as seen (orientation applied), from the header alone.

    Raises RecordFault ``not_an_image`` or ``too_large``.
    """
    image = _open(data)
    width, height = image.size
    return (height, width) if _orientation(image) in _SWAPPED else (width, height)


def square_layout(
    width: int, height: int, *, side: int, rounding: Rounding
) -> tuple[int, int, int, int]:
    """Where the scaled image lies in the square: (scaled width, scaled height, left, top).

    rounding: "official" cuts the scaled short side's fraction off, "transformers" rounds to the
    nearest whole number (of two, the even one).
    """
    long_side = max(width, height)
    least = min(MIN_SHORT_SIDE, side)

    def scaled(length: int) -> int:
        if rounding == "official":
            return max(int(length / long_side * side), least)
        return max(round(length * (side / long_side)), least)

    scaled_width, scaled_height = scaled(width), scaled(height)
    return scaled_width, scaled_height, (side - scaled_width) // 2, (side - scaled_height) // 2


def decode_square(
    data: bytes,
    *,
    side: int,
    pad_color: Sequence[int],
    rounding: Rounding,
    mode: Literal["exact", "scaled"],
) -> np.ndarray:
    """Decode to a padded square: uint8 (side, side, 3), RGB. ``rounding``: see
    ``square_layout``.

    ``mode="scaled"`` lets the JPEG decoder drop frequencies that the smaller size cannot show (DCT
    scaling by 1/2, 1/4 or 1/8, never below the target size): several times faster on large photos,
    not bit-equal. Other formats are decoded alike in both modes.
    Raises RecordFault ``not_an_image``, ``truncated`` or ``too_large``.
    """

    def scaled(width: int, height: int) -> tuple[int, int]:
        return square_layout(width, height, side=side, rounding=rounding)[:2]

    least = scaled if mode == "scaled" else None
    pixels, (width, height) = _decoded(data, background=pad_color, least=least)
    scaled_width, scaled_height, left, top = square_layout(
        width, height, side=side, rounding=rounding
    )
    if _size(pixels) != (scaled_width, scaled_height):
        image = _as_image(pixels)
        pixels = image.resize((scaled_width, scaled_height), Image.Resampling.BICUBIC)
    # Row by row and around the image only: pixel by pixel, padding would take half as long as
    # decoding a photo.
    padding = np.tile(np.asarray(pad_color, dtype=np.uint8), (side, 1))
    square = np.empty((side, side, 3), dtype=np.uint8)
    bottom, right = top + scaled_height, left + scaled_width
    square[:top] = square[bottom:] = padding
    square[top:bottom, :left] = padding[:left]
    square[top:bottom, right:] = padding[right:]
    square[top:bottom, left:right] = np.asarray(pixels)
    return square


def decode_upright(
    data: bytes,
    *,
    background: Sequence[int],
    least: Callable[[int, int], tuple[int, int]] | None,
) -> tuple[Image.Image, tuple[int, int]]:
    """The image in RGB as seen, and the size in pixels that it has at its full resolution.

    background: what shows through transparency. least: from the full size to the width and height
    that are needed; a JPEG may then be decoded smaller (DCT scaling), but not smaller than that.
    Raises RecordFault as ``decode_square`` does.
    """
    pixels, size = _decoded(data, background=background, least=least)
    return _as_image(pixels), size


def _decoded(
    data: bytes,
    *,
    background: Sequence[int],
    least: Callable[[int, int], tuple[int, int]] | None,
) -> tuple[Image.Image | np.ndarray, tuple[int, int]]:
    """``decode_upright``; an image that simplejpeg decoded is an array still, (h, w, 3)."""
    assert len(background) == 3, background
    red, green, blue = background
    image = _open(data)
    orientation = _orientation(image)
    width, height = image.size
    if orientation in _SWAPPED:
        width, height = height, width
    if least is not None:
        least_width, least_height = least(width, height)
        if orientation in _SWAPPED:
            least_width, least_height = least_height, least_width
        image.draft(None, (least_width, least_height))
        if orientation == 1 and (found := _by_simplejpeg(data, image)) is not None:
            return found, (width, height)
    _load(image)
    image = _to_rgb(image, background=(int(red), int(green), int(blue)))
    if orientation in _TRANSPOSE:
        image = image.transpose(_TRANSPOSE[orientation])
    return image, (width, height)


def _by_simplejpeg(data: bytes, image: Image.Image) -> np.ndarray | None:
    """The pixels of an opened and drafted JPEG, uint8 (h, w, 3); None where Pillow must see to
    it."""
    if simplejpeg is None or image.format != "JPEG" or image.mode != "RGB":
        return None
    width, height = image.size
    try:
        found = simplejpeg.decode_jpeg(data, min_height=height, min_width=width, min_factor=1)
    except ValueError:  # damaged, or of a kind that it does not know
        return None
    return found if found.shape == (height, width, 3) else None


def _size(pixels: Image.Image | np.ndarray) -> tuple[int, int]:
    """Width and height in pixels."""
    if isinstance(pixels, Image.Image):
        return pixels.size
    return pixels.shape[1], pixels.shape[0]


def _as_image(pixels: Image.Image | np.ndarray) -> Image.Image:
    return pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)


def _open(data: bytes) -> Image.Image:
    """Parse the header; no pixel is decoded."""
    if not data:
        raise RecordFault("not_an_image", "the member is empty (0 bytes)")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise RecordFault(
            "not_an_image",
            f"{len(data)} bytes starting {data[:8]!r} are none of {', '.join(FORMATS)}",
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RecordFault("too_large", str(error)) from None
    except (OSError, SyntaxError, ValueError, struct.error, EOFError) as error:
        raise RecordFault("not_an_image", f"broken header: {error}") from error
    width, height = image.size
    if width < 1 or height < 1:
        raise RecordFault("not_an_image", f"the header says {width}x{height} pixels")
    if width * height > MAX_PIXELS:
        raise RecordFault(
            "too_large", f"{width}x{height} pixels; at most {MAX_PIXELS} pixels are decoded"
        )
    return image


def _load(image: Image.Image) -> None:
    """Decode the pixels."""
    try:
        image.load()
    except (OSError, EOFError, zlib.error) as error:
        raise RecordFault("truncated", f"{image.format} {image.size}: {error}") from error
    except (SyntaxError, ValueError, struct.error, IndexError) as error:
        raise RecordFault("not_an_image", f"{image.format} {image.size}: {error}") from error
    except Image.DecompressionBombError as error:
        raise RecordFault("too_large", str(error)) from None


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8 (1 is upright), without decoding: a PNG whose EXIF follows its pixels
    counts as upright, here and in ``decode_square`` alike."""
    if "exif" not in image.info and image.format not in ("JPEG", "MPO", "TIFF", "WEBP"):
        return 1
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, OSError, struct.error):
        return 1  # damaged EXIF says nothing about the pixels
    return value if value in _TRANSPOSE else 1


def _to_rgb(image: Image.Image, *, background: tuple[int, int, int]) -> Image.Image:
    """Any Pillow mode to RGB; see the module docstring for the choices."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_stretch(np.asarray(image, dtype=np.float64))).convert("RGB")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _stretch(grey: np.ndarray) -> np.ndarray:
    """(h, w) numbers of any range to uint8, minimum to 0 and maximum to 255; a flat image is
    black."""
    grey = np.nan_to_num(grey, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(grey.min()), float(grey.max())
    if high == low:
        return np.zeros(grey.shape, dtype=np.uint8)
    return np.rint((grey - low) / (high - low) * 255.0).astype(np.uint8)
