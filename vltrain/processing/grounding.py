"""Boxes in pixels in, the text that DeepSeek-VL2 writes for them out: ``[[x1, y1, x2, y2], ...]``;
and back from a model's answer, as shares of the image's sides.

A coordinate is a share of the image's width or height in steps of 1/999, from 0 to 999 (the
released demonstration draws ``x / 999 * width``). The image is the stored one as it is seen, before
it is scaled or cut into tiles: neither changes a share. How a share is rounded is not published.

A box that cannot be meant is a fault of its record, never mended: one that is clipped or turned
round in silence teaches a wrong place. What a model answers is read as it is: a box without an area
overlaps nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from enum import Enum

from vltrain.batch import Boxes, Special, StoredImage
from vltrain.errors import RecordFault

LAST = 999
"""The coordinate of an image's right and lower border."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom as shares of the image's width or height, 0 to 1."""

_DET = re.compile(f"{re.escape(Special.det.value)}(.*?){re.escape(Special.det_end.value)}", re.S)
_NUMBERS = r"\s*,\s*".join(["([0-9]{1,3})"] * 4)
_BOX = re.compile(rf"\[\s*{_NUMBERS}\s*\]")
_LIST = re.compile(rf"\s*\[\s*{_BOX.pattern}(?:\s*,\s*{_BOX.pattern})*\s*\]\s*")


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


def boxes_in(answer: str) -> tuple[Box, ...]:
    """The boxes that an answer names between ``<|det|>`` and ``<|/det|>``, in its order.

    Empty where there is no such span, and where any is no list of boxes of four whole numbers from
    0 to 999. What stands around the spans does not matter, nor does one that is not closed.
    """
    spans = _DET.findall(answer)
    if not all(_LIST.fullmatch(span) for span in spans):
        return ()
    found = [tuple(map(int, box)) for span in spans for box in _BOX.findall(span)]
    return tuple((a / LAST, b / LAST, c / LAST, d / LAST) for a, b, c, d in found)


def shares_of(meant: Boxes, *, images: Sequence[StoredImage]) -> tuple[Box, ...]:
    """A record's boxes, which ``box_text`` has taken, exactly: not as they are written."""
    image = images[meant.image]
    return tuple(
        (left / image.width, top / image.height, right / image.width, bottom / image.height)
        for left, top, right, bottom in meant.boxes
    )


def intersection_over_union(first: Box, second: Box) -> float:
    """Common area over the area of both, 0 to 1; the same in shares as in pixels of one image. 0
    where either has no area or its sides the wrong way round."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    return common / (_area(first) + _area(second) - common)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


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
