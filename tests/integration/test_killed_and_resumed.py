"""A run that is killed without a save and started again is the run that was never stopped: the same
batches, losses and weights, also with other processes and another ZeRO stage."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from launching import DEMO, Stages, deepspeed, launch, python, rows_of

from vltrain.checkpoint.reader import read_part_state
from vltrain.checkpoint.store import open_checkpoint

KILLED = "runs/demo/killed"
WORDS = ("stage=2", *DEMO, "run.name=killed")


@dataclass(frozen=True, kw_only=True)
class Killed:
    """Step of the last row that the killed run wrote, its wandb id, and a copy of what it left."""

    step: int
    wandb_id: str
    copy: Path


@pytest.fixture(scope="module")
def killed(stages: Stages, workspace: Path) -> Killed:
    """Killed once it is past its first checkpoint and before the next."""
    run = workspace / KILLED
    rows = run / "steps.jsonl"

    def one_past_the_checkpoint() -> bool:
        written = (run / "checkpoints/step-00000004").is_dir()
        return written and rows.read_bytes().count(b"\n") > 4

    ended, steps = None, []
    for _ in range(8):  # the kill is a race against the end of the run, which is two steps away
        shutil.rmtree(run, ignore_errors=True)
        ended = launch(
            deepspeed("--num_gpus", "2"),
            *WORDS,
            cwd=workspace,
            kill_when=one_past_the_checkpoint,
        )
        steps = [p.name for p in (run / "checkpoints").glob("step-*")]
        if ended.code == -9 and steps == ["step-00000004"]:
            break
    assert ended is not None
    assert (ended.code, steps) == (-9, ["step-00000004"]), f"killed too late: {ended.err}"
    copy = workspace / "runs/demo/killed-elsewhere"
    shutil.copytree(run, copy)
    return Killed(step=rows_of(run)[-1]["step"], wandb_id=(run / "wandb_id").read_text(), copy=copy)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """Everything that trained, as of the last checkpoint."""
    checkpoint = open_checkpoint(run / "checkpoints/step-00000006")
    return {
        name: tensor
        for part in ("adaptor", "language")
        for name, tensor in read_part_state(checkpoint.directory, checkpoint.manifest, part=part)
    }


def batches(rows: list[dict]) -> list[tuple]:
    """What of a row tells of the data."""
    names = ("step", "digest", "chain", "modality", "tokens", "supervised", "images", "packs")
    return [tuple(str(row[name]) for name in names) for row in rows]


def test_the_same_command_goes_on(stages: Stages, killed: Killed, workspace: Path) -> None:
    assert killed.step > 4
    ended = launch(deepspeed("--num_gpus", "2"), *WORDS, cwd=workspace)
    assert ended.code == 0, ended.err
    assert ended.said("resuming from") == 1
    run, whole = workspace / KILLED, stages.runs[2]
    rows, wanted = rows_of(run), rows_of(whole)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert batches(rows) == batches(wanted)
    assert [row["loss"] for row in rows] == [row["loss"] for row in wanted]
    assert [row["grad_norm"] for row in rows] == [row["grad_norm"] for row in wanted]
    assert [row["language_share_realised"] for row in rows] == [
        row["language_share_realised"] for row in wanted
    ]
    found, expected = weights_of(run), weights_of(whole)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (run / "wandb_id").read_text() == killed.wandb_id
    folders = list((run / "wandb").glob(f"offline-run-*-{killed.wandb_id.strip()}"))
    assert len(folders) == 2


def test_one_process_with_a_worker_and_zero_3_go_on_as_well(
    stages: Stages, killed: Killed, workspace: Path
) -> None:
    """And plain ``python launch/train.py``."""
    ended = launch(
        python(),
        *(*WORDS[:-1], f"run.name={killed.copy.name}", "engine.zero_stage=3"),
        "data.batch.micro=1",
        "data.loader.workers=1",
        cwd=workspace,
    )
    assert ended.code == 0, ended.err
    rows, wanted = rows_of(killed.copy), rows_of(stages.runs[2])
    assert batches(rows) == batches(wanted)
    assert [row["loss"] for row in rows] == pytest.approx([r["loss"] for r in wanted], rel=1e-5)
    found, expected = weights_of(killed.copy), weights_of(stages.runs[2])
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-5)
