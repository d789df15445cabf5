"""Boxes in pixels to what DeepSeek-VL2 writes; the numbers were computed by hand."""

from __future__ import annotations

import math

import pytest

from vltrain.batch import Boxes, StoredImage
from vltrain.errors import RecordFault
from vltrain.processing.grounding import (
    BoxRounding,
    box_text,
    boxes_in,
    intersection_over_union,
    shares_of,
)

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


def test_boxes_of_an_answer_in_its_order() -> None:
    first, second = (0, 333 / 999, 1, 666 / 999), (0.0, 0.0, 5 / 999, 10 / 999)
    assert boxes_in("<|det|>[[0, 333, 999, 666]]<|/det|>") == (first,)
    several = (
        "A <|ref|>cat<|/ref|><|det|>[[0,333,999,666],[ 0, 0,5 ,10 ]]<|/det|> and "
        "<|ref|>the\nother<|/ref|><|det|>\n[[0, 333, 999, 666]] <|/det|>."
    )
    assert boxes_in(several) == (first, second, first)
    assert boxes_in("<|det|>[[0, 0, 5, 10]]<|/det|> <|det|>[[1, 2, 3") == (second,)  # cut


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "a cat",
        "[[0, 0, 5, 10]]",
        "<|det|>[[0, 0, 5, 10]]",
        "<|det|>[0, 0, 5, 10]<|/det|>",
        "<|det|>[]<|/det|>",
        "<|det|>[[0, 0, 5]]<|/det|>",
        "<|det|>[[0, 0, 5, 1000]]<|/det|>",
        "<|det|>[[0, 0, -5, 10]]<|/det|>",
        "<|det|>[[0, 0, 0.5, 10]]<|/det|>",
        "<|det|>[[0, 0, 5, 10],]<|/det|>",
        "<|det|>[[0, 0, 5, 10]]<|/det|><|det|>[[5]]<|/det|>",
        "<|det|>[[0, 0, 5, 10]] <|det|>[[0, 0, 5, 10]]<|/det|>",
    ],
)
def test_an_answer_that_names_no_box(answer: str) -> None:
    assert boxes_in(answer) == ()


def test_shares_are_exact() -> None:
    meant = Boxes(image=0, boxes=((250, 125, 500, 400), (0, 0, 1000, 500)))
    assert shares_of(meant, images=[WIDE, SMALL]) == ((0.25, 0.25, 0.5, 0.8), (0, 0, 1, 1))
    meant = Boxes(image=1, boxes=((0, 16, 32, 48),))
    assert shares_of(meant, images=[WIDE, SMALL]) == ((0, 0.25, 0.5, 0.75),)


def test_what_is_written_is_read_back() -> None:
    said = "<|det|>" + text((250, 125, 500, 400)) + "<|/det|>"
    assert boxes_in(said) == ((250 / 999, 250 / 999, 500 / 999, 799 / 999),)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0.1, 0.2, 0.5, 0.9), (0.1, 0.2, 0.5, 0.9), 1),
        ((0, 0, 0.5, 1), (0.25, 0, 0.75, 1), 1 / 3),  # 0.25 of 0.5 + 0.5 - 0.25
        ((0, 0, 1, 1), (0.25, 0.25, 0.75, 0.75), 0.25),
        ((0, 0, 0.5, 1), (0, 0, 0.5, 0.5), 0.5),
        ((0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5), 0),  # they touch
        ((0, 0, 0.2, 0.2), (0.5, 0.5, 1, 1), 0),
        ((0.5, 0, 0.5, 1), (0, 0, 1, 1), 0),  # no area
        ((0.75, 0, 0.25, 1), (0, 0, 1, 1), 0),  # turned round
        ((0.75, 0.75, 0.25, 0.25), (0.75, 0.75, 0.25, 0.25), 0),
    ],
)
def test_intersection_over_union(first, second, expected: float) -> None:
    assert intersection_over_union(first, second) == pytest.approx(expected)
    assert intersection_over_union(second, first) == pytest.approx(expected)
