"""Boxes in pixels in, the text that DeepSeek-VL2 writes for them out: ``[[x1, y1, x2, y2], ...]``.

A coordinate is a share of the image's width or height in steps of 1/999, from 0 to 999 (the
released demonstration draws ``x / 999 * width``). The image is the stored one as it is seen, before
it is scaled or cut into tiles: neither changes a share. How a share is rounded is not published.

A box that cannot be meant is a fault of its record, never mended: one that is clipped or turned
round in silence teaches a wrong place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum

from vltrain.batch import Boxes, StoredImage
from vltrain.errors import RecordFault

LAST = 999
"""The coordinate of an image's right and lower border."""


class BoxRounding(str, Enum):
    """How a share of the image becomes a whole coordinate."""

    nearest = "nearest"  # halves up
    down = "down"


def box_text(found: Boxes, *, images: Sequence[StoredImage], rounding: BoxRounding) -> str:
    """The text between ``<|det|>`` and ``<|/det|>``.

    Raises RecordFault ``bad_box``: no such image, no box, a number that is not finite, sides in the
    wrong order (or without an area), a side outside the image.
    """
    if not 0 <= found.image < len(images):
        raise RecordFault(
            "bad_box", f"boxes in image {found.image}, but the record has {len(images)} images"
        )
    image = images[found.image]
    if not found.boxes:
        raise RecordFault("bad_box", f"an empty list of boxes in image {found.image}")
    rows = [
        "[" + ", ".join(map(str, _coordinates(box, image=image, rounding=rounding))) + "]"
        for box in found.boxes
    ]
    return "[" + ", ".join(rows) + "]"


def _coordinates(
    box: tuple[float, float, float, float], *, image: StoredImage, rounding: BoxRounding
) -> list[int]:
    left, top, right, bottom = box
    if not all(map(math.isfinite, box)):
        raise RecordFault("bad_box", f"{list(box)} holds a number that is not finite")
    if not (left < right and top < bottom):
        raise RecordFault(
            "bad_box",
            f"{list(box)} is not left, top, right, bottom with left < right and top < bottom",
        )
    if left < 0 or top < 0 or right > image.width or bottom > image.height:
        raise RecordFault(
            "bad_box",
            f"{list(box)} reaches out of image {image.member} of {image.width} x {image.height} "
            "pixels",
        )
    sides = (image.width, image.height, image.width, image.height)
    half = 0.5 if rounding is BoxRounding.nearest else 0.0
    return [math.floor(value * LAST / side + half) for value, side in zip(box, sides, strict=True)]
