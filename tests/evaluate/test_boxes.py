"""Boxes of answers against those of records; every figure was computed by hand."""

from __future__ import annotations

import pytest

from vltrain.evaluate.boxes import box_figures, score_boxes
from vltrain.evaluate.results import BoxFigures, BoxScore
from vltrain.processing.grounding import Box

LEFT: Box = (0, 0, 333 / 999, 1)  # a third of the picture
MIDDLE: Box = (333 / 999, 0, 666 / 999, 1)


def said(*boxes: list[int]) -> str:
    return f"<|ref|>it<|/ref|><|det|>{list(boxes)}<|/det|>"


def score(answer: str, *expected: Box, threshold: float = 0.5) -> BoxScore:
    return score_boxes(answer, expected=expected, threshold=threshold)


def test_one_box_is_right_from_the_threshold_on() -> None:
    half = (0.0, 0.0, 0.5, 1.0)
    found = score(said([0, 0, 999, 999]), half)
    assert found == BoxScore(expected=1, readable=True, f1=1.0, iou=0.5)
    assert found.is_right
    assert not score(said([0, 0, 999, 999]), half, threshold=0.51).is_right
    assert not score(said([0, 0, 999, 999]), LEFT).is_right


def test_of_several_boxes_the_first_is_the_answer_where_one_is_meant() -> None:
    assert score(said([0, 0, 333, 999], [0, 0, 9, 9]), LEFT).is_right
    wrong = score(said([666, 0, 999, 999], [0, 0, 333, 999]), LEFT)
    assert (wrong.readable, wrong.f1, wrong.iou) == (True, 0, 0)


@pytest.mark.parametrize("answer", ["", "a cat", "<|det|>[[0, 0, 333, 999", "<|det|>[[1]]<|/det|>"])
def test_an_answer_without_a_box_is_wrong(answer: str) -> None:
    expected = BoxScore(expected=1, readable=False, f1=0, iou=0)
    assert score(answer, LEFT) == expected
    assert score(answer, LEFT, MIDDLE) == BoxScore(expected=2, readable=False, f1=0, iou=0)


@pytest.mark.parametrize(
    ("boxes", "f1", "iou"),
    [
        ([[333, 0, 666, 999], [0, 0, 333, 999]], 1, 1),  # in another order
        ([[0, 0, 333, 999]], 2 / 3, 1 / 2),  # one is missing: 2 * 1 / (1 + 2)
        ([[0, 0, 333, 999], [333, 0, 666, 999], [666, 0, 999, 999]], 4 / 5, 1),  # too many
        ([[0, 0, 333, 999]] * 2, 1 / 2, 1 / 2),  # the same again finds nothing more
        ([[0, 0, 333, 999], [333, 0, 888, 999]], 1, 0.8),  # IoU 1 and 333 / 555
        ([[0, 0, 333, 999], [333, 0, 666, 333]], 1 / 2, 2 / 3),  # IoU 1 and 1 / 3: 2 * 1 / 4
        ([[666, 0, 999, 999]], 0, 0),
    ],
)
def test_several_boxes(boxes: list[list[int]], f1: float, iou: float) -> None:
    found = score(said(*boxes), LEFT, MIDDLE)
    assert found.f1 == pytest.approx(f1)
    assert found.iou == pytest.approx(iou)
    assert found.is_right == (f1 == 1)


def test_the_pair_that_agrees_most_is_taken_first() -> None:
    """The answer's first box has IoU 3 / 4 with the first meant and 1 with the second, its other
    box 1 / 2 with the first and 2 / 3 with the second."""
    first, second = (0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.75, 1.0)
    wide, half = [0, 0, 749, 999], [0, 0, 500, 999]
    found = score(said(wide, half), first, second)
    assert found.iou == pytest.approx((1 + 1 / 2) / 2, abs=0.002)
    assert found.f1 == 1


def test_figures_over_questions() -> None:
    right = BoxScore(expected=1, readable=True, f1=1.0, iou=0.9)
    near = BoxScore(expected=1, readable=True, f1=0.0, iou=0.4)
    silent = BoxScore(expected=1, readable=False, f1=0.0, iou=0.0)
    two = BoxScore(expected=2, readable=True, f1=0.5, iou=0.6)
    mute = BoxScore(expected=3, readable=False, f1=0.0, iou=0.0)
    found = box_figures([right, near, silent, two, mute])
    assert found == BoxFigures(
        one_box=3, right=1, several_boxes=2, f1=0.25, iou=pytest.approx(0.38), unreadable=2
    )
    assert box_figures([right]) == BoxFigures(
        one_box=1, right=1, several_boxes=0, f1=None, iou=0.9, unreadable=0
    )
    assert box_figures([mute]) == BoxFigures(
        one_box=0, right=0, several_boxes=1, f1=0.0, iou=0.0, unreadable=1
    )
