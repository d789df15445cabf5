"""Boxes in pixels to what DeepSeek-VL2 writes; the numbers were computed by hand."""

from __future__ import annotations

import math

import pytest

from vltrain.batch import Boxes, StoredImage
from vltrain.errors import RecordFault
from vltrain.processing.grounding import BoxRounding, box_text

WIDE = StoredImage(member="0.png", data=b"", width=1000, height=500)
SMALL = StoredImage(member="1.png", data=b"", width=64, height=64)


def text(*boxes, image: int = 0, rounding: BoxRounding = BoxRounding.nearest) -> str:
    return box_text(Boxes(image=image, boxes=boxes), images=[WIDE, SMALL], rounding=rounding)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 1000, 500), "[[0, 0, 999, 999]]"),  # the whole image
        ((250, 125, 500, 400), "[[250, 250, 500, 799]]"),  # 249.75, 249.75, 499.5, 799.2
        ((0.2, 0.4, 999.6, 499.9), "[[0, 1, 999, 999]]"),  # 0.1998, 0.7992, 998.6004, 998.8002
    ],
)
def test_a_box_is_shares_of_its_image(box, expected: str) -> None:
    assert text(box) == expected


def test_rounding_down() -> None:
    box = (250, 125, 500, 400)
    assert text(box, rounding=BoxRounding.down) == "[[249, 249, 499, 799]]"
    whole = (0, 0, 1000, 500)
    assert text(whole, rounding=BoxRounding.down) == "[[0, 0, 999, 999]]"


def test_several_boxes_of_another_image() -> None:
    # 16 / 64 * 999 = 249.75, 32 / 64 * 999 = 499.5, 48 / 64 * 999 = 749.25
    assert text((0, 16, 32, 48), (32, 32, 64, 64), image=1) == (
        "[[0, 250, 500, 749], [500, 500, 999, 999]]"
    )


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((0, 0, 1001, 500), r"\[0, 0, 1001, 500\] reaches out of image 0.png of 1000 x 500 pixels"),
        ((-1, 0, 10, 10), "reaches out"),
        ((0, -0.5, 10, 10), "reaches out"),
        ((0, 0, 10, 500.5), "reaches out"),
        ((10, 0, 5, 10), r"\[10, 0, 5, 10\] is not left, top, right, bottom"),
        ((0, 10, 5, 10), "left < right and top < bottom"),
        ((0, 0, math.nan, 10), "not finite"),
        ((0, 0, math.inf, 10), "not finite"),
    ],
)
def test_a_box_that_cannot_be_meant_is_a_fault(box, words: str) -> None:
    with pytest.raises(RecordFault, match=words) as fault:
        text(box)
    assert fault.value.reason == "bad_box"


def test_a_box_needs_an_image_and_a_list_a_box() -> None:
    with pytest.raises(RecordFault, match="boxes in image 2, but the record has 2 images"):
        text((0, 0, 1, 1), image=2)
    with pytest.raises(RecordFault, match="boxes in image -1"):
        text((0, 0, 1, 1), image=-1)
    with pytest.raises(RecordFault, match="an empty list of boxes in image 0"):
        text()
