"""What a report needs of one run directory, read once.

In: a directory with any of steps.jsonl, results.json, summary.json and config.yaml. Out: a
``RunView``. A file that is not there is an empty section, not an error: a report can be made
while a run goes on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vltrain.data.layout import CARD_NAME
from vltrain.errors import DataError
from vltrain.evaluate.results import Point, read_points
from vltrain.metrics.peaks import mean_mfu
from vltrain.metrics.rows import StepRow, read_rows, useful_share
from vltrain.metrics.summary import StageSummary, read_summary

LANGUAGE, MULTIMODAL = "language", "multimodal"


@dataclass(frozen=True, kw_only=True)
class RunView:
    """One run. ``points``: its evaluations, oldest first."""

    directory: Path
    rows: tuple[StepRow, ...]
    points: tuple[Point, ...]
    summary: StageSummary | None
    config: str

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def stage(self) -> str:
        """The stage's name, as far as anything says it."""
        if self.rows:
            return self.rows[-1].stage
        if self.summary is not None:
            return self.summary.name
        return self.points[-1].stage if self.points else self.name

    @property
    def order(self) -> tuple[float, float]:
        """Sorts runs as they follow each other: by stage number, then by the first step's time."""
        number = self.summary.number if self.summary is not None else math.inf
        return number, self.rows[0].time if self.rows else math.inf


@dataclass(frozen=True, kw_only=True)
class TokenTotals:
    """Sums over a run's rows. ``planned_share``, ``realised_share``: of language tokens, 0 to 1.
    mfu, useful_share: of the rows that know them, 0 to 1."""

    planned: dict[str, int]
    realised: dict[str, int]
    supervised: dict[str, int]
    images: int
    holes: int
    skipped_steps: int
    seconds: float
    mfu: float | None
    useful_share: float | None

    @property
    def planned_share(self) -> float:
        return _share(self.planned)

    @property
    def realised_share(self) -> float:
        return _share(self.realised)


def _share(tokens: dict[str, int]) -> float:
    total = sum(tokens.values())
    return tokens.get(LANGUAGE, 0) / total if total else 0.0


def token_totals(rows: Sequence[StepRow]) -> TokenTotals:
    """Sums of ``rows``."""

    def summed(name: str) -> dict[str, int]:
        return {m: sum(getattr(r, name).get(m, 0) for r in rows) for m in (LANGUAGE, MULTIMODAL)}

    return TokenTotals(
        planned=summed("planned_tokens"),
        realised=summed("tokens"),
        supervised=summed("supervised"),
        images=sum(r.images for r in rows),
        holes=sum(r.holes for r in rows),
        skipped_steps=sum(r.skipped for r in rows),
        seconds=sum(r.seconds for r in rows),
        mfu=mean_mfu(rows),
        useful_share=useful_share(rows),
    )


def read_run(directory: Path) -> RunView:
    """Read one run directory. Raises DataError if it is none, or holds a damaged file."""
    if not directory.is_dir():
        raise DataError(f"{directory} is no run directory: there is no such folder")
    config = directory / "config.yaml"
    return RunView(
        directory=directory,
        rows=tuple(read_rows(directory / "steps.jsonl")),
        points=tuple(read_points(directory)),
        summary=read_summary(directory),
        config=config.read_text(encoding="utf-8") if config.exists() else "",
    )


def read_runs(directories: Sequence[Path]) -> tuple[RunView, ...]:
    """The runs in the order of training (``RunView.order``), whatever their names. Raises DataError
    when none of them has rows or results."""
    read = [read_run(directory) for directory in dict.fromkeys(directories)]
    runs = tuple(sorted(read, key=lambda run: run.order))
    if not any(run.rows or run.points for run in runs):
        raise DataError(
            f"nothing to report: no steps.jsonl or results.json in "
            f"{', '.join(str(d) for d in directories) or 'no directory'}; train or evaluate first"
        )
    return runs


def find_runs(root: Path) -> list[Path]:
    """The run directories below ``root`` (or ``root`` itself), by name; one level deeper too, where
    the runs of a sweep lie."""
    candidates = [root, *sorted(p for glob in ("*", "*/*") for p in root.glob(glob) if p.is_dir())]
    names = ("steps.jsonl", "results.json")
    return [p for p in candidates if any((p / name).exists() for name in names)]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataCard:
    """What the report says of a data set."""

    name: str
    description: str
    source: str
    licence: str
    attribution: str
    synthetic: bool


def first_evaluated(runs: Sequence[RunView]) -> RunView | None:
    """Of the runs of the lowest stage, the first that was evaluated; None where none was."""
    lowest = min((run.order[0] for run in runs), default=math.inf)
    return next((run for run in runs if run.points and run.order[0] == lowest), None)


def read_cards(folders: Sequence[Path]) -> tuple[DataCard, ...]:
    """The cards beside the shards in ``folders``, each data set once; folders without one are left
    out."""
    cards: dict[str, DataCard] = {}
    for folder in folders:
        path = folder / CARD_NAME
        if not path.exists():
            continue
        stored = json.loads(path.read_text(encoding="utf-8"))
        card = DataCard(
            name=str(stored.get("name", folder.name)),
            description=str(stored.get("description", "")),
            source=str(stored.get("source", "")),
            licence=str(stored.get("licence", "")),
            attribution=str(stored.get("attribution", "")),
            synthetic=bool(stored.get("synthetic", False)),
        )
        cards.setdefault(card.name, card)
    return tuple(cards.values())
