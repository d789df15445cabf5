"""results.json: round trip, merging, refusal of what it is not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from vltrain.errors import DataError
from vltrain.evaluate.results import (
    Accuracy,
    AnsweredSample,
    BoxAccuracy,
    BoxFigures,
    BoxScore,
    HeldOutLoss,
    Mean,
    Point,
    merge_point,
    point_labels,
    read_points,
    write_point,
)

LOSS = HeldOutLoss(records=4, targets=100, loss=2.5, blank_loss=None, faults=0)
RIGHT = Accuracy(asked=10, right=6, right_blank=2, chance=None)
SAMPLE = AnsweredSample(
    source="quiz",
    group="what",
    key="what-1",
    question="What?",
    expected="red",
    answer="Red",
    blank_answer="blue",
    image_png=None,
)

SEEN = BoxFigures(one_box=8, right=6, several_boxes=2, f1=0.75, iou=0.7, unreadable=1)
BLIND = BoxFigures(one_box=8, right=2, several_boxes=2, f1=0.25, iou=0.1, unreadable=3)
BOXES = BoxAccuracy(threshold=0.5, seen=SEEN, blank=BLIND)
POINTED = replace(SAMPLE, boxes=BoxScore(expected=1, readable=True, f1=0.0, iou=0.4))


def point(stage="align", step=10, **figures) -> Point:
    return Point(stage=stage, step=step, model="runs/a/checkpoints/step-10", **figures)


def test_a_point_comes_back_as_it_went(tmp_path):
    written = point(
        held_out={"prose": LOSS},
        questions={"quiz": {"what": RIGHT}},
        boxes={"quiz": {"find": BOXES, "see": replace(BOXES, blank=None)}},
        choices={"colors": Accuracy(asked=5, right=2, right_blank=1, chance=0.1)},
        samples={"quiz": (SAMPLE, POINTED)},
    )
    path = write_point(tmp_path / "run", point=written)
    assert read_points(tmp_path / "run") == [written]
    assert json.loads(path.read_text())["schema"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_results_of_before_boxes_were_scored(tmp_path):
    path = write_point(tmp_path, point=point(samples={"quiz": (SAMPLE,)}))
    stored = json.loads(path.read_text())
    del stored["points"][0]["boxes"]
    del stored["points"][0]["samples"]["quiz"][0]["boxes"]
    path.write_text(json.dumps(stored))
    assert read_points(tmp_path) == [point(samples={"quiz": (SAMPLE,)})]


def test_the_same_step_is_replaced_by_source_and_others_are_kept():
    other = HeldOutLoss(records=1, targets=2, loss=9.0, blank_loss=None, faults=0)
    old = {"quiz": {"find": replace(BOXES, blank=None)}, "old": {"find": BOXES}}
    points = [
        point(step=5, held_out={"prose": other}),
        point(held_out={"prose": other, "old": other}, boxes=old),
    ]
    new = point(
        held_out={"prose": LOSS}, choices={"colors": RIGHT}, boxes={"quiz": {"find": BOXES}}
    )
    merged = merge_point(points, new=new)
    assert merged[1].boxes == {"quiz": {"find": BOXES}, "old": {"find": BOXES}}
    assert [p.step for p in merged] == [5, 10]
    assert merged[1].held_out == {"prose": LOSS, "old": other}
    assert merged[1].choices == {"colors": RIGHT}
    assert [p.stage for p in merge_point(merged, new=point(stage="pretrain"))] == [
        "align",
        "align",
        "pretrain",
    ]


def test_labels_name_the_step_only_where_a_stage_has_several_points():
    points = [point(step=5), point(step=10), point(stage="pretrain")]
    assert point_labels(points) == ["align 5", "align 10", "pretrain"]


def test_shares():
    assert RIGHT.share == 0.6
    assert RIGHT.blank_share == 0.2
    assert Accuracy(asked=0, right=0, right_blank=0, chance=None).share == 0.0
    assert Accuracy(asked=3, right=1, right_blank=None, chance=None).blank_share is None
    assert SAMPLE.is_right


def test_figures_of_boxes():
    assert BOXES.first_box == Accuracy(asked=8, right=6, right_blank=2, chance=None)
    assert BOXES.f1 == Mean(asked=2, share=0.75, blank_share=0.25)
    assert BOXES.iou == Mean(asked=10, share=0.7, blank_share=0.1)
    one = BoxAccuracy(threshold=0.5, seen=replace(SEEN, several_boxes=0, f1=None), blank=None)
    assert one.first_box == Accuracy(asked=8, right=6, right_blank=None, chance=None)
    assert one.f1 is None
    assert one.iou == Mean(asked=8, share=0.7, blank_share=None)
    several = BoxAccuracy(threshold=0.5, seen=replace(SEEN, one_box=0, right=0), blank=None)
    assert several.first_box is None
    assert several.f1 == Mean(asked=2, share=0.75, blank_share=None)
    # Boxes that agree are right whatever the words, and the other way round.
    assert not replace(POINTED, answer=POINTED.expected).is_right
    assert replace(POINTED, boxes=BoxScore(expected=1, readable=True, f1=1.0, iou=0.6)).is_right


def test_no_file_has_no_points(tmp_path):
    assert read_points(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "found no JSON object"),
        ("[]", "found no JSON object"),
        ('{"schema": 9, "points": []}', "has schema 9, this version reads schema 1"),
    ],
)
def test_another_file_is_refused(tmp_path, text, words):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DataError, match=words):
        read_points(tmp_path)
