"""Data inspection, assembled: from configs and run directories to what is shown.

In: a checked config, or two, and run directories. Out: the texts and files of
``launch/inspect_data.py``. Nothing of the model is built; of a run, rows and manifests are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from vltrain.assemble.datapath import DataPath, micro_batch_dataset, open_data, open_held_out
from vltrain.assemble.identity import model_digest
from vltrain.batch import Origin, PieceRef
from vltrain.errors import ConfigError
from vltrain.inspection.contact_sheet import contact_sheet
from vltrain.inspection.difference import (
    PlanSide,
    ValueDifference,
    first_planned_difference,
    first_recorded_difference,
    recipe_values,
    value_differences,
)
from vltrain.inspection.lint import LintReport, lint_mix
from vltrain.inspection.page import render_page
from vltrain.inspection.planned import PlannedSteps, plan_steps
from vltrain.inspection.recorded import Proof, RecordedRun, prove, read_recorded
from vltrain.inspection.step_table import terminal_step
from vltrain.inspection.step_view import StepView, view_steps
from vltrain.runconfig import RunConfig, to_yaml


@dataclass(frozen=True, kw_only=True)
class InspectedSteps:
    """text: for the terminal. sheet: None where the steps hold no picture. holds: False where a
    step is not what the run recorded."""

    text: str
    page: Path
    sheet: Path | None
    holds: bool


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of two configs that are compared. name: as shown. run: its directory, where it is one."""

    name: str
    config: RunConfig
    run: Path | None


def inspect_steps(
    config: RunConfig,
    *,
    run: Path | None,
    first: int,
    last: int,
    out: Path,
    shown_packs: int,
    terminal_packs: int,
) -> InspectedSteps:
    """Plan, read and draw steps ``first`` to ``last`` (1 is the first) into ``out``.

    run: the directory of a run of this config, whose checkpoints shorten the way to the steps and
    whose rows prove them. shown_packs: of each step on the page; the others are read only for the
    proof. Raises ConfigError where ``out`` cannot be made, DataError and CheckpointError as the
    modules that do the work.
    """
    recorded = read_recorded(run) if run is not None else None
    data = open_data(config)
    if recorded is not None:
        recorded.refuse_other(recipe=data.recipe.digest, seed=config.run.seed)
    _make_folder(out)
    cursor = recorded.cursor_before(first, plan=data.plan) if recorded is not None else None
    planned = plan_steps(data.plan, first=first, last=last, cursor=cursor)
    views = _views(config, data, planned, recorded, shown_packs=shown_packs)
    proofs = _proofs(recorded, views)
    names = [table.name for table in data.tables]

    def locate(ref: PieceRef) -> Origin:
        return data.reader.origin(ref.source, ref.piece)

    where = run if run is not None else config.run_dir
    steps = f"step {first}" if first == last else f"steps {first} to {last}"
    page = render_page(
        views,
        title=f"{config.stage.name}, {steps}",
        about=f"{where}: {planned.cost()}. Recipe {data.recipe.digest}, seed {config.run.seed}.",
        notes=_notes(views, recorded),
        names=names,
        packing=config.data.packing,
        locate=locate,
        proofs=proofs,
    )
    stem = f"step-{first}" if first == last else f"steps-{first}-{last}"
    (out / f"{stem}.html").write_text(page, encoding="utf-8")
    sheet = contact_sheet(views)
    if sheet is not None:
        (out / f"{stem}.png").write_bytes(sheet)
    tables = [
        terminal_step(
            step,
            names=names,
            packing=config.data.packing,
            locate=locate,
            shown_packs=terminal_packs,
        )
        for step in planned.steps
    ]
    lines = [*tables, planned.cost(), *(proof.words() for proof in proofs.values())]
    return InspectedSteps(
        text="\n\n".join([*lines, *_notes(views, recorded)]),
        page=out / f"{stem}.html",
        sheet=out / f"{stem}.png" if sheet is not None else None,
        holds=all(proof.holds for proof in proofs.values()),
    )


def compare_data(left: Side, right: Side, *, steps: int) -> Iterator[str]:
    """Paragraphs on what differs: config keys first (they need no data), then recorded digests,
    then recipes, then the first of ``steps`` planned steps whose packs differ. Raises DataError
    where the data of a side cannot be opened."""
    yield f"there: {left.name}\nhere:  {right.name}"
    configs = [yaml.safe_load(to_yaml(side.config)) for side in (left, right)]
    yield _listed("config", value_differences(*configs))
    if left.run is not None and right.run is not None:
        rows = [read_recorded(run).rows for run in (left.run, right.run)]
        yield _recorded_words(*first_recorded_difference(*rows))
    opened = [open_data(side.config) for side in (left, right)]
    digests = [
        _digests(side.config, data) for side, data in zip((left, right), opened, strict=True)
    ]
    yield _listed("digests", value_differences(*digests))
    yield _listed(
        "data recipe", value_differences(*(recipe_values(d.recipe.facts) for d in opened))
    )
    for side, data in zip((left, right), opened, strict=True):
        yield from _changed_since(side, data)
    sides = [PlanSide(plan=data.plan, locate=data.reader.origin) for data in opened]
    found = first_planned_difference(sides[0], sides[1], steps=steps)
    if found is None:
        yield f"planned batches: the same packs in all of the first {steps:,} steps"
    else:
        yield f"planned batches differ from step {found.step} on: {found.words}"


def lint_data(config: RunConfig) -> LintReport:
    """Check the mix of a config. Raises DataError where a source or held-out source cannot be
    opened."""
    data = open_data(config)
    return lint_mix(
        data.tables,
        held_out=open_held_out(config, data),
        plan=data.plan,
        steps=config.optim.steps,
    )


def _make_folder(out: Path) -> None:
    """Before anything is planned or read, so that it is not done in vain."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be made ({error.strerror}): give --out a folder that can be written"
        ) from error


def _views(
    config: RunConfig,
    data: DataPath,
    planned: PlannedSteps,
    recorded: RecordedRun | None,
    *,
    shown_packs: int,
) -> list[StepView]:
    rows = recorded.rows if recorded is not None else {}
    return list(
        view_steps(
            planned.steps,
            dataset=micro_batch_dataset(config, data),
            modalities=tuple(table.modality for table in data.tables),
            decode=data.encoder.tokenizer.decode,
            workers=config.data.loader.workers,
            shown_packs=shown_packs,
            read_all=any(step.step + 1 in rows for step in planned.steps),
        )
    )


def _proofs(recorded: RecordedRun | None, views: list[StepView]) -> dict[int, Proof]:
    """By step number, of the steps that the run recorded."""
    if recorded is None:
        return {}
    found = {
        view.number: prove(recorded, step=view.number, digest=view.digest)
        for view in views
        if view.digest is not None
    }
    return {step: proof for step, proof in found.items() if proof is not None}


def _notes(views: list[StepView], recorded: RecordedRun | None) -> list[str]:
    """What a reader must know of these steps."""
    notes = []
    if holes := sum(bool(piece.hole) for v in views for pack in v.packs for piece in pack.pieces):
        notes.append(f"{holes} pieces are holes: their records cannot be used")
    ahead = [view.number for view in views if recorded and view.number not in recorded.rows]
    if recorded is not None and ahead:
        notes.append(
            f"{recorded.directory} has not recorded step {ahead[0]} (its steps.jsonl ends with "
            f"step {max(recorded.rows, default=0)}): planned, not proved"
        )
    return notes


def _digests(config: RunConfig, data: DataPath) -> Mapping[str, str]:
    return {
        "data recipe": data.recipe.digest,
        "seed": str(config.run.seed),
        "tokenizer": data.encoder.tokenizer.digest,
        "encoder": data.encoder.digest,
        "model": model_digest(config.model),
    }


def _changed_since(side: Side, data: DataPath) -> Iterator[str]:
    """A paragraph where a run's shards are no longer those that it was trained on."""
    if side.run is None:
        return
    manifests = read_recorded(side.run).manifests
    if manifests and manifests[-1].recipe_digest != data.recipe.digest:
        yield (
            f"{side.name} was trained on data recipe {manifests[-1].recipe_digest}; its config and "
            f"shards now give {data.recipe.digest}: the data has changed since, and the steps "
            "below are those of now"
        )


def _recorded_words(steps: int, first: int | None) -> str:
    if not steps:
        return "recorded batches: no step that both runs recorded"
    if first is None:
        return f"recorded batches: the same digests in all {steps:,} steps that both recorded"
    return f"recorded batches: digests differ from step {first} on ({steps:,} recorded by both)"


def _listed(what: str, differences: list[ValueDifference]) -> str:
    if not differences:
        return f"{what}: the same"
    lines = [f"  {difference.words()}" for difference in differences]
    return "\n".join([f"{what}: {len(differences)} differ", *lines])
