"""Killed and gone on with 1 to 4 processes, 0, 1 or 3 data workers in each and other micro-batches,
through the deepspeed launcher: the batches are those of the run that was never stopped."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import DEMO, deepspeed, launch, prepare_here, rows_of

# Which weights are trained does not matter here, so no stage has to come before.
WORDS = (
    *("stage=2", *DEMO, "init_from=null", "model.weights.allow_random=true"),
    *("checkpoint.every_steps=1", "metrics.wandb.enabled=false", "optim.steps=30"),
)
# Processes, workers of each, packs in a micro-batch. Each number of
# processes and of workers comes at least twice.
PARTS = [
    *((2, 1, 1), (1, 3, 2), (3, 0, 1), (4, 1, 2), (4, 3, 1), (3, 3, 2), (1, 0, 1), (2, 0, 2)),
    (3, 1, 1),
]


@pytest.fixture(scope="module")
def prepared(workspace: Path) -> Path:
    prepare_here(workspace, *WORDS)
    return workspace


def past(run: Path, step: int) -> Callable[[], bool]:
    """Whether the run has written the row of ``step``."""
    rows = run / "steps.jsonl"
    return lambda: rows.is_file() and rows.read_bytes().count(b"\n") >= step


def batches(run: Path) -> list[tuple]:
    names = ("step", "digest", "chain", "modality", "tokens", "supervised", "images", "packs")
    return [tuple(str(row[name]) for name in names) for row in rows_of(run)]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_processes_and_workers_are_free(prepared: Path) -> None:
    run, dice = prepared / "runs/demo/other-workers", random.Random(7)
    step = 0
    for number, (processes, workers, micro) in enumerate(PARTS):
        last = number == len(PARTS) - 1
        step += dice.randint(1, 3)
        ended = launch(
            deepspeed("--num_gpus", str(processes)),
            *(*WORDS, f"run.name={run.name}", f"data.loader.workers={workers}"),
            f"data.batch.micro={micro}",
            cwd=prepared,
            kill_when=None if last else past(run, step),
            seconds=900,
        )
        assert ended.code == (0 if last else -9), ended.err
        assert last or len(rows_of(run)) < 30, "ended before it was killed"
        if number:
            assert ended.said("resuming from") == 1, ended.err
    whole = launch(
        deepspeed("--num_gpus", "1"), *WORDS, "run.name=never-stopped", cwd=prepared, seconds=900
    )
    assert whole.code == 0, whole.err
    wanted = prepared / "runs/demo/never-stopped"
    assert batches(run) == batches(wanted)
    assert [row["loss"] for row in rows_of(run)] == pytest.approx(
        [row["loss"] for row in rows_of(wanted)], abs=1e-4
    )
