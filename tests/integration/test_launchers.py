"""Every way to start a run, and errors under a launcher said once."""

from __future__ import annotations

import shutil
from pathlib import Path

from launching import DEMO, Stages, deepspeed, launch, python, rows_of, torchrun

WORDS = ("stage=1", *DEMO)


def test_deepspeed_without_a_number_of_processes(stages: Stages, workspace: Path) -> None:
    """``deepspeed launch/train.py stage=1``: as many processes as it finds devices."""
    ended = launch(deepspeed(), *WORDS, "run.name=bare", "optim.steps=2", cwd=workspace)
    assert ended.code == 0, ended.err
    rows, wanted = rows_of(workspace / "runs/demo/bare"), rows_of(stages.runs[1])
    assert [row["chain"] for row in rows] == [row["chain"] for row in wanted[:2]]


def test_torchrun_continues_what_deepspeed_began(stages: Stages, workspace: Path) -> None:
    """A finished run goes on when it is given more steps."""
    run = workspace / "runs/demo/longer"
    shutil.copytree(stages.runs[1], run)
    ended = launch(
        torchrun("--nproc_per_node", "2"),
        *(*WORDS, "run.name=longer", "optim.steps=8"),
        cwd=workspace,
    )
    assert ended.code == 0, ended.err
    rows = rows_of(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert rows[:6] == rows_of(stages.runs[1])


def test_one_multirun_makes_a_run_of_each_value(stages: Stages, workspace: Path) -> None:
    """Plain ``python launch/train.py -m``, with SAM's weights at another path of equal bytes."""
    shutil.copytree(workspace / "runs/demo/warm_start/sam", workspace / "moved/sam")
    ended = launch(
        python(),
        *("-m", *WORDS, "optim.lr=1e-3,2e-3", "optim.steps=2", "run.name=sweep"),
        "model.weights.sam=moved/sam",
        cwd=workspace,
    )
    assert ended.code == 0, ended.err
    runs = sorted((workspace / "runs/demo/sweep").iterdir())
    assert [run.name for run in runs] == ["0,optim.lr=0.001", "1,optim.lr=0.002"]
    rows = [rows_of(run) for run in runs]
    assert [run[0]["lr"]["adaptor"] for run in rows] == [1e-3, 2e-3]
    assert rows[0][0]["chain"] == rows[1][0]["chain"] == rows_of(stages.runs[1])[0]["chain"]
    assert not [*workspace.glob("multirun*"), *workspace.glob("outputs")]
    assert (workspace / "runs/demo/multirun.yaml").is_file()


def test_hydras_own_error_is_said_once(workspace: Path) -> None:
    ended = launch(deepspeed("--num_gpus", "2"), "stage=4", *DEMO, cwd=workspace)
    assert ended.code != 0
    assert ended.said("Could not find 'stage/4'") == 1
    assert ended.said("Traceback") == 0


def test_our_error_on_all_ranks_is_said_once(stages: Stages, workspace: Path) -> None:
    words = (*WORDS, "run.name=wrong", "data.sources.emoji.path=nowhere")
    ended = launch(deepspeed("--num_gpus", "2"), *words, cwd=workspace)
    assert ended.code == 2
    assert ended.said("error: ") == ended.said("match no file") == 1, ended.err
    assert ended.said("Traceback") == 0
