"""What breaks a run, done to real processes: each ends soon, with a code and a reason, and the same
command goes on."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
from launching import DEMO, Ranks, prepare_here, rows_of

WORDS = ("stage=1", *DEMO, "optim.steps=100000", "checkpoint.every_steps=100000")


@pytest.fixture(scope="module")
def prepared(workspace: Path) -> Path:
    prepare_here(workspace, *WORDS)
    return workspace


def rows(run: Path) -> int:
    file = run / "steps.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def checkpoints(run: Path) -> list[str]:
    return sorted(p.name for p in (run / "checkpoints").glob("*"))


def test_signals_save_and_a_killed_rank_ends_the_others(prepared: Path) -> None:
    run = prepared / "runs/demo/faults"
    words = (*WORDS, "run.name=faults", "data.loader.workers=1")
    with Ranks(*words, cwd=prepared) as ranks:
        ranks.wait_for(lambda: rows(run) >= 2)
        # One rank alone is told, and told again while it saves. Which of two pending signals a
        # process sees first is the kernel's choice, so either name is right.
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            ranks.processes[1].send_signal(number)
        assert ranks.codes() == [75, 75]
        step = rows_of(run)[-1]["step"]
        told = f"SIG(USR1|TERM) on rank 1: stopped after step {step} of 100000, which is saved"
        assert re.search(told, ranks.said(0))
        assert "Traceback" not in ranks.said(0) + ranks.said(1)
        assert "stopped after" not in ranks.said(1), "said once"
    assert checkpoints(run) == [f"step-{step:08d}"]
    with Ranks(*words, cwd=prepared) as ranks:
        ranks.wait_for(lambda: rows(run) >= step + 2)
        assert f"resuming from runs/demo/faults/checkpoints/step-{step:08d}" in ranks.said(0)
        ranks.processes[1].kill()
        assert ranks.codes() == [3, -9]
        assert "rank 0: error: rank 1 on " in ranks.said(0)
        assert "gave no sign of life" in ranks.said(0)
    assert [row["step"] for row in rows_of(run)][: step + 2] == list(range(1, step + 3))


def test_a_rank_that_is_killed_while_the_run_starts(prepared: Path) -> None:
    """As when a node runs out of memory over the weights."""
    run = prepared / "runs/demo/starting"
    with Ranks(*WORDS, "run.name=starting", cwd=prepared) as ranks:
        ranks.wait_for(run.is_dir)  # made once the processes have met
        ranks.processes[1].kill()
        assert ranks.codes() == [3, -9]
        said = ranks.said(0)
    assert "Traceback" not in said
    assert "rank 0: error: another process of this run failed, was killed" in said or (
        "rank 0: error: rank 1 on " in said
    )


def test_a_full_disk_ends_all_ranks(prepared: Path) -> None:
    run = prepared / "runs/demo/full"
    words = (*WORDS, "run.name=full", "checkpoint.every_steps=2", "metrics.wandb.enabled=false")
    with Ranks(*words, cwd=prepared, largest_file=40_000) as ranks:
        ranks.wait_for(lambda: rows(run) >= 2)
        assert ranks.codes() == [2, 2]
        assert "error: The checkpoint of step 2 could not be written to " in ranks.said(0)
        assert "File too large" in ranks.said(0)
        assert "Older checkpoints are as they were" in ranks.said(0)
        assert "Traceback" not in ranks.said(0) + ranks.said(1)
        assert "could not be written" not in ranks.said(1), "said once"
    assert checkpoints(run) == []


LIMITS = ("engine.stall_seconds=3", "engine.lost_seconds=30", "engine.timeout_seconds=200")


def ended_without_the_stopped_rank(ranks: Ranks) -> str:
    """What rank 0 said until it ended; rank 1 is stopped where it is."""
    ranks.processes[1].send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    assert ranks.processes[0].wait(timeout=300) == 3
    print(f"ended after {time.monotonic() - begin:.1f} s")
    return ranks.said(0)


@pytest.mark.slow
def test_a_rank_that_stands_still_ends_the_others(prepared: Path) -> None:
    run = prepared / "runs/demo/still"
    with Ranks(*WORDS, "run.name=still", *LIMITS, cwd=prepared) as ranks:
        ranks.wait_for(lambda: rows(run) >= 2)
        said = ended_without_the_stopped_rank(ranks)
    assert re.search(r"no progress for \d+ s: ", said)
    assert "Current thread" in said
    assert "rank 1 on " in said
    assert "gave no sign of life" in said


@pytest.mark.slow
def test_a_rank_that_stands_still_while_the_run_starts_ends_the_others(prepared: Path) -> None:
    run = prepared / "runs/demo/still_starting"
    with Ranks(*WORDS, "run.name=still_starting", *LIMITS, cwd=prepared) as ranks:
        ranks.wait_for(run.is_dir)
        said = ended_without_the_stopped_rank(ranks)
    assert re.search(r"rank 1\b.* gave no sign of life for \d+ s; it was starting", said)


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_a_file_system_that_hangs_while_the_run_starts_ends_all_ranks(prepared: Path) -> None:
    """Rank 0 alone opens steps.jsonl; this one never opens, as on a mount that is gone. Rank 1
    waits for rank 0 and is not blamed."""
    run = prepared / "runs/demo/hangs"
    run.mkdir(parents=True)
    os.mkfifo(run / "steps.jsonl")
    words = (*WORDS, "run.name=hangs", "engine.start_seconds=200", "metrics.wandb.enabled=false")
    with Ranks(*words, cwd=prepared) as ranks:
        assert ranks.codes(seconds=1200) == [3, 3]
        reason = r"the run ends: rank 0 on \S+: no progress for \d+ s: starting: .*the run's files"
        assert re.search(reason, ranks.said(0))
        assert re.search(reason, ranks.said(1))
        assert "jsonl.py" in ranks.said(0), "the stack of what hangs"


@pytest.mark.slow
def test_a_signal_while_the_run_starts(prepared: Path) -> None:
    run = prepared / "runs/demo/early"
    with Ranks(*WORDS, "run.name=early", cwd=prepared) as ranks:
        ranks.wait_for(run.is_dir)
        ranks.processes[0].send_signal(signal.SIGUSR1)
        assert ranks.codes(seconds=500) == [75, 75]
        assert "SIGUSR1 on rank 0: stopped before the first of 100000 steps" in ranks.said(0)
    assert checkpoints(run) == []
