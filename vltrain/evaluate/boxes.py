"""Boxes in an answer, held against those of the record.

In: an answer's text, the record's boxes. Out: a ``BoxScore``; and figures over many of them. Scored
as in referring expression comprehension: where one box is meant (RefCOCO), the first box of the
answer is right from an IoU of ``threshold`` on; where several are meant (gRefCOCO, arXiv
2308.16182), F1 over pairs of that IoU, each box in one pair, the pair of the highest IoU taken
first, as gRefCOCO's own code does. An optimal assignment was rejected: at 0.5 it gives another F1
only where boxes of the record overlap each other, and is not what is published. The words around
the boxes are not scored, nor which of them a box belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence

from vltrain.evaluate.results import BoxFigures, BoxScore
from vltrain.processing.grounding import Box, boxes_in, intersection_over_union


def score_boxes(answer: str, *, expected: Sequence[Box], threshold: float) -> BoxScore:
    """``expected``: at least one. An answer without a box that can be read is wrong."""
    found = boxes_in(answer)
    counted = found if len(expected) > 1 else found[:1]
    pairs = _pairs(counted, expected)
    right = sum(iou >= threshold for iou in pairs)
    return BoxScore(
        expected=len(expected),
        readable=bool(found),
        f1=2 * right / (len(counted) + len(expected)),
        iou=sum(pairs) / len(expected),
    )


def box_figures(scores: Sequence[BoxScore]) -> BoxFigures:
    """Figures over the answers to at least one question."""
    several = [score.f1 for score in scores if score.expected > 1]
    return BoxFigures(
        one_box=len(scores) - len(several),
        right=sum(score.is_right for score in scores if score.expected == 1),
        several_boxes=len(several),
        f1=sum(several) / len(several) if several else None,
        iou=sum(score.iou for score in scores) / len(scores),
        unreadable=sum(not score.readable for score in scores),
    )


def _pairs(found: Sequence[Box], expected: Sequence[Box]) -> list[float]:
    """IoU of every pair, the highest first; no box is in two pairs, none has an IoU of 0."""
    ious = {
        (i, j): intersection_over_union(box, meant)
        for i, box in enumerate(found)
        for j, meant in enumerate(expected)
    }
    pairs: list[float] = []
    while any(ious.values()):
        i, j = max(ious, key=ious.__getitem__)
        pairs.append(ious[i, j])
        ious = {(k, m): iou for (k, m), iou in ious.items() if k != i and m != j}
    return pairs
