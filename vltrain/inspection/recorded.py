"""What a run directory says of its data: rows with digests, cursors of its checkpoints.

In: a run directory. Out: a ``RecordedRun``; the manifests are read, the weights are not. A damaged
checkpoint is passed over with a warning: an earlier cursor leads to the same steps.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vltrain.checkpoint.config import CheckpointConfig
from vltrain.checkpoint.manifest import MANIFEST, Manifest
from vltrain.checkpoint.store import CheckpointStore, open_checkpoint, run_of
from vltrain.data.digest import chain
from vltrain.data.plan import Plan
from vltrain.errors import CheckpointError, ConfigError
from vltrain.metrics.events import OTHER_DATA, last_step_of
from vltrain.metrics.rows import StepRow, read_rows

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """rows: by step, 1 is the first. manifests: rising by step. other_data_after: the step after
    which the run was given the data that it has now, 0 where it has always had it."""

    directory: Path
    rows: dict[int, StepRow]
    manifests: tuple[Manifest, ...]
    other_data_after: int = 0

    def cursor_before(self, step: int, *, plan: Plan) -> Mapping[str, Any] | None:
        """The latest recorded cursor from which ``step`` can be planned; None: only from the start.

        plan: of the run's present data. Raises CheckpointError for a step that was trained on the
        data of before, and where the rows from which the beginning is counted are gone.
        """
        if 0 < step <= self.other_data_after:
            raise CheckpointError(
                f"step {step} was trained on other data: after step {self.other_data_after} "
                f"{self.directory} was given that of its config (resume.accept), and only that can "
                "be planned from it. A checkpoint of then, if one is kept, has the config of then: "
                "copy it out of checkpoints/ to another folder and inspect the copy"
            )
        since = [m for m in self.manifests if self.other_data_after < m.step < step and m.cursor]
        if since or not self.other_data_after:
            return since[-1].cursor if since else None
        rows = [row for number, row in self.rows.items() if number <= self.other_data_after]
        if len(rows) < self.other_data_after:
            raise CheckpointError(
                f"{self.directory} was given other data after step {self.other_data_after} "
                f"(resume.accept), and its steps.jsonl has {len(rows)} rows up to there: where the "
                "data began cannot be counted. Put the rows back, or ask for a step after its "
                "next checkpoint"
            )
        return plan.cursor_at(
            step=self.other_data_after,
            packs=sum(row.packs for row in rows),
            tokens=sum(sum(row.planned_tokens.values()) for row in rows),
        )

    def refuse_other(self, *, recipe: str, seed: int) -> None:
        """Raise CheckpointError where the data as it is now is not what the run was trained on."""
        for manifest in self.manifests[-1:]:
            if (manifest.recipe_digest, manifest.seed) != (recipe, seed):
                raise CheckpointError(
                    f"{self.directory} was trained on data recipe {manifest.recipe_digest} with "
                    f"seed {manifest.seed}; its config and shards now give {recipe} with seed "
                    f"{seed}: a word on the command line, or a shard, changes the order. Leave the "
                    "word out, put the shards back, or see what changed with: inspect_data.py diff"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """A step's digest as read again, against the run's own record. is_linked: whether the recorded
    chain leads from the row before to this one (None: that row is not there)."""

    step: int
    found: str
    recorded: str
    is_linked: bool | None

    @property
    def holds(self) -> bool:
        return self.found == self.recorded and self.is_linked is not False

    def words(self) -> str:
        """One line for people."""
        if self.found != self.recorded:
            return (
                f"step {self.step}: digest {self.found}, but steps.jsonl has {self.recorded}: what "
                "is read now is not what the run was trained on (a shard changed, or a record that "
                "was bad then can be read now; see ledger.jsonl)"
            )
        if self.is_linked is False:
            return (
                f"step {self.step}: the digest is steps.jsonl's, but its chain does not lead from "
                "the row before to this one: rows were edited or lost"
            )
        link = "" if self.is_linked is None else ", and links the chain of the row before to its"
        return f"step {self.step}: digest {self.found} is the one in steps.jsonl{link}"


def run_directory(directory: Path) -> Path:
    """The run that ``directory`` is, or is a checkpoint of (one that was copied away from its run
    stands for itself). Raises ConfigError for anything else."""
    if (directory / MANIFEST).is_file():
        directory = run_of(directory)
    if not (directory / "config.yaml").is_file():
        raise ConfigError(
            f"{directory} is no run directory (it has no config.yaml): expected one that "
            "launch/train.py made, or a checkpoint of one"
        )
    return directory


def read_recorded(directory: Path) -> RecordedRun:
    """Rows and manifests of a run directory, or the manifest of a checkpoint that was copied away
    from its run. Raises DataError for a damaged row, CheckpointError for such a copy."""
    if (directory / MANIFEST).is_file():
        copy = open_checkpoint(directory).manifest
        return RecordedRun(directory=directory, rows={}, manifests=(copy,))
    store = CheckpointStore(directory / "checkpoints", config=CheckpointConfig())
    manifests = []
    for step in store.steps():
        try:
            manifests.append(open_checkpoint(store.path(step)).manifest)
        except CheckpointError as error:
            log.warning("checkpoint of step %d passed over: %s", step, error)
    rows = {row.step: row for row in read_rows(directory / "steps.jsonl")}
    return RecordedRun(
        directory=directory,
        rows=rows,
        manifests=tuple(manifests),
        other_data_after=last_step_of(directory / "events.jsonl", event=OTHER_DATA),
    )


def prove(run: RecordedRun, *, step: int, digest: str) -> Proof | None:
    """The step's digest against the run's record; None where the run has not come so far."""
    row = run.rows.get(step)
    if row is None:
        return None
    before = "" if step == 1 else getattr(run.rows.get(step - 1), "chain", None)
    # The chain counts steps from 0, rows from 1.
    is_linked = None if before is None else chain(before, step - 1, row.digest) == row.chain
    return Proof(step=step, found=digest, recorded=row.digest, is_linked=is_linked)
