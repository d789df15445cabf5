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
class AnsweredSample:
    """One question with its picture, for people to look at. ``image_png``: base64; None: no
    picture."""

    source: str
    group: str
    key: str
    question: str
    expected: str
    answer: str
    blank_answer: str | None
    image_png: str | None

    @property
    def is_right(self) -> bool:
        return same_answer(self.answer, self.expected)


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """All figures of one model. ``questions``: source -> group -> figures. ``samples``: source -> a
    few of its questions."""

    stage: str
    step: int
    model: str  # what was loaded: a checkpoint's or a published directory
    held_out: dict[str, HeldOutLoss] = field(default_factory=dict)
    questions: dict[str, dict[str, Accuracy]] = field(default_factory=dict)
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
        choices={name: Accuracy(**x) for name, x in stored["choices"].items()},
        samples={
            name: tuple(AnsweredSample(**x) for x in rows)
            for name, rows in stored["samples"].items()
        },
    )
