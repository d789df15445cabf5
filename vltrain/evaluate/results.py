"""``results.json``: what evaluation found, per model evaluated.

In: the figures of one evaluation (a *point*: one model at one step). Out: a file that holds the
points of a run, oldest first; evaluating the same step again replaces the sources that were
evaluated and keeps the rest. Sample pictures lie in the file as PNG, so that a report needs
nothing but run directories. The file is replaced whole, by rename.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vltrain.errors import DataError

SCHEMA = 1
RESULTS_NAME = "results.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutLoss:
    """Nats per target of one source; ``blank_loss`` with every picture blanked (None: not
    measured, or the source has no pictures). ``faults``: records that could not be used."""

    records: int
    targets: int
    loss: float
    blank_loss: float | None
    faults: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Right answers of those asked; ``right_blank`` with every picture blanked (None: not asked).
    ``chance``: accuracy of guessing, 0 to 1 (None: open answers)."""

    asked: int
    right: int
    right_blank: int | None
    chance: float | None

    @property
    def share(self) -> float:
        return self.right / self.asked if self.asked else 0.0

    @property
    def blank_share(self) -> float | None:
        if self.right_blank is None or not self.asked:
            return None
        return self.right_blank / self.asked


@dataclass(frozen=True, kw_only=True, slots=True)
class Mean:
    """Mean over ``asked`` questions of a figure from 0 to 1; ``blank_share`` with every picture
    blanked (None: not asked)."""

    asked: int
    share: float
    blank_share: float | None

    @property
    def chance(self) -> None:
        """Of guessing a place nothing is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxScore:
    """One answer to a question whose recorded answer has ``expected`` boxes (``evaluate.boxes``).
    ``readable``: it names a box. ``f1``: of the boxes at the IoU from which one is right; 0 or 1
    where one is expected. ``iou``: mean over the expected boxes, 0 for one that is not found."""

    expected: int
    readable: bool
    f1: float
    iou: float

    @property
    def is_right(self) -> bool:
        """No box is missing, wrong or too many."""
        return self.f1 == 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxFigures:
    """Over answers with boxes. ``right``: of the ``one_box`` questions that expect one box. ``f1``:
    mean over the ``several_boxes`` questions that expect more (None: there are none). ``iou``:
    mean over all. ``unreadable``: answers that name no box."""

    one_box: int
    right: int
    several_boxes: int
    f1: float | None
    iou: float
    unreadable: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxAccuracy:
    """``seen``: of the questions as they are; ``blank``: with every picture blanked (None: not
    asked). ``threshold``: IoU from which a box is right."""

    threshold: float
    seen: BoxFigures
    blank: BoxFigures | None

    @property
    def first_box(self) -> Accuracy | None:
        """Of the questions that expect one box; None where there are none."""
        if not self.seen.one_box:
            return None
        blank = self.blank.right if self.blank is not None else None
        return Accuracy(
            asked=self.seen.one_box, right=self.seen.right, right_blank=blank, chance=None
        )

    @property
    def f1(self) -> Mean | None:
        """Of the questions that expect several boxes; None where there are none."""
        if self.seen.f1 is None:
            return None
        blank = self.blank.f1 if self.blank is not None else None
        return Mean(asked=self.seen.several_boxes, share=self.seen.f1, blank_share=blank)

    @property
    def iou(self) -> Mean:
        asked = self.seen.one_box + self.seen.several_boxes
        blank = self.blank.iou if self.blank is not None else None
        return Mean(asked=asked, share=self.seen.iou, blank_share=blank)


@dataclass(frozen=True, kw_only=True, slots=True)
class AnsweredSample:
    """One question with its picture, for people to look at. ``image_png``: base64; None: no
    picture. ``boxes``: score of an answer that should name boxes; None: of words."""

    source: str
    group: str
    key: str
    question: str
    expected: str
    answer: str
    blank_answer: str | None
    image_png: str | None
    boxes: BoxScore | None = None

    @property
    def is_right(self) -> bool:
        if self.boxes is not None:
            return self.boxes.is_right
        return same_answer(self.answer, self.expected)


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """All figures of one model. ``questions``: source -> group -> figures of answers in words;
    ``boxes``: the same of answers with boxes. ``samples``: source -> a few of its questions."""

    stage: str
    step: int
    model: str  # what was loaded: a checkpoint's or a published directory
    held_out: dict[str, HeldOutLoss] = field(default_factory=dict)
    questions: dict[str, dict[str, Accuracy]] = field(default_factory=dict)
    boxes: dict[str, dict[str, BoxAccuracy]] = field(default_factory=dict)
    choices: dict[str, Accuracy] = field(default_factory=dict)
    samples: dict[str, tuple[AnsweredSample, ...]] = field(default_factory=dict)


def same_answer(answer: str, expected: str) -> bool:
    """Equal apart from case and the space around."""
    return answer.strip().lower() == expected.strip().lower()


def point_labels(points: Sequence[Point]) -> list[str]:
    """The stage's name; with the step where a stage has several points."""
    stages = [point.stage for point in points]
    return [p.stage if stages.count(p.stage) == 1 else f"{p.stage} {p.step}" for p in points]


def merge_point(points: list[Point], *, new: Point) -> list[Point]:
    """``points`` with ``new`` in its place: by stage and step, figures of the same source
    replaced."""
    for position, old in enumerate(points):
        if (old.stage, old.step) == (new.stage, new.step):
            merged = replace(
                new,
                held_out={**old.held_out, **new.held_out},
                questions={**old.questions, **new.questions},
                boxes={**old.boxes, **new.boxes},
                choices={**old.choices, **new.choices},
                samples={**old.samples, **new.samples},
            )
            return [*points[:position], merged, *points[position + 1 :]]
    return [*points, new]


def write_point(directory: Path, *, point: Point) -> Path:
    """Merge ``point`` into the directory's results.json; returns its path."""
    path = directory / RESULTS_NAME
    points = merge_point(read_points(directory), new=point)
    stored = {"schema": SCHEMA, "points": [asdict(p) for p in points]}
    directory.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".writing-{os.getpid()}")
    aside.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, path)
    return path


def read_points(directory: Path) -> list[Point]:
    """The points of a run; none where nothing was evaluated yet. Raises DataError for another
    file."""
    path = directory / RESULTS_NAME
    if not path.exists():
        return []
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        schema = stored.get("schema")
    except (json.JSONDecodeError, AttributeError) as error:
        raise DataError(f"{path}: expected a results file, found no JSON object") from error
    if schema != SCHEMA:
        raise DataError(
            f"{path}: has schema {schema}, this version reads schema {SCHEMA}; evaluate again "
            "after moving the file away"
        )
    return [_point(p) for p in stored["points"]]


def _point(stored: Mapping[str, Any]) -> Point:
    return Point(
        stage=stored["stage"],
        step=stored["step"],
        model=stored["model"],
        held_out={name: HeldOutLoss(**x) for name, x in stored["held_out"].items()},
        questions={
            name: {group: Accuracy(**x) for group, x in groups.items()}
            for name, groups in stored["questions"].items()
        },
        boxes={  # absent where nothing but words was scored yet
            name: {group: _box_accuracy(x) for group, x in groups.items()}
            for name, groups in stored.get("boxes", {}).items()
        },
        choices={name: Accuracy(**x) for name, x in stored["choices"].items()},
        samples={name: tuple(_sample(x) for x in rows) for name, rows in stored["samples"].items()},
    )


def _box_accuracy(stored: Mapping[str, Any]) -> BoxAccuracy:
    blank = stored["blank"]
    return BoxAccuracy(
        threshold=stored["threshold"],
        seen=BoxFigures(**stored["seen"]),
        blank=None if blank is None else BoxFigures(**blank),
    )


def _sample(stored: Mapping[str, Any]) -> AnsweredSample:
    boxes = stored.get("boxes")
    return AnsweredSample(**{**stored, "boxes": None if boxes is None else BoxScore(**boxes)})
