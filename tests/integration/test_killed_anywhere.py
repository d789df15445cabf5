"""A run that is killed again and again, at random instants and inside saves, and goes on each time
with another number of processes, ZeRO stage and micro-batch, is the run that was never stopped: the
same batches, the same ledger, the same losses; and what it goes on from is never half a
checkpoint. (With other data workers too: test_killed_with_workers.py.)"""

from __future__ import annotations

import json
import random
import re
import shutil
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from forked import run_forked
from launching import DEMO, Finished, prepare_here, rows_of

from vltrain.checkpoint.manifest import damaged_files, read_manifest

# Which weights are trained does not matter here, so no stage has to come before.
WORDS = (
    *("stage=2", *DEMO, "init_from=null", "model.weights.allow_random=true"),
    *("data.sources.emoji.path=data/bad_emoji", "data.faults.budget=1"),
    *("checkpoint.every_steps=1", "metrics.wandb.enabled=false"),
)
EXACT = ("step", "digest", "chain", "modality", "tokens", "supervised", "images", "packs", "holes")


@dataclass(frozen=True, kw_only=True)
class Kill:
    """SIGKILL to every process at once, when this launch has written the row of ``step`` (None:
    while it starts) and so many seconds more; inside: at the next save from then on, so many
    seconds into it."""

    step: int | None
    seconds: float
    inside: bool


@dataclass(frozen=True, kw_only=True)
class Part:
    """One launch. kill: None lets it run to its end."""

    processes: int
    zero_stage: int
    micro: int
    kill: Kill | None

    def words(self) -> tuple[str, ...]:
        return (
            f"engine.zero_stage={self.zero_stage}",
            f"data.batch.micro={self.micro}",
        )


def parts(seed: int, *, kills: int, starting: int) -> list[Part]:
    """``kills`` launches that are killed, ``starting`` of them while they start and half of the
    others inside a save, and one that is not."""
    dice = random.Random(seed)
    steps = sorted(dice.sample(range(1, 2 * kills), kills - starting))
    drawn = [
        Kill(step=step, seconds=dice.uniform(0, 0.02 if inside else 0.5), inside=inside)
        for number, step in enumerate(steps)
        for inside in [number % 2 == 0]
    ]
    for _ in range(starting):
        kill = Kill(step=None, seconds=dice.uniform(0.2, 4), inside=False)
        drawn.insert(dice.randrange(1, len(drawn) // 2), kill)
    return [
        Part(
            processes=dice.choice((1, 2, 3, 4)),
            zero_stage=dice.choice((1, 2, 3)),
            micro=dice.choice((1, 2)),
            kill=kill,
        )
        for kill in (*drawn, None)
    ]


@pytest.fixture(scope="module")
def prepared(workspace: Path) -> Path:
    """The workspace with a source that has bad records: every fifth picture is cut."""
    folder = workspace / "data/bad_emoji"
    shutil.copytree(
        workspace / "data/demo/emoji_caption/train",
        folder,
        ignore=shutil.ignore_patterns(".vltrain"),
    )
    for shard in folder.glob("*.tar"):
        with tarfile.open(shard) as tar:
            pictures = [m for m in tar if m.name.endswith(".png")]
        with shard.open("r+b") as stream:
            for picture in pictures[::5]:
                stream.seek(picture.offset_data + 64)  # behind the header, which prepare reads
                stream.write(bytes(picture.size - 64))
    prepare_here(workspace, *WORDS)
    return workspace


def last_step(run: Path, *, since: float) -> int:
    """The last step that was written after ``since`` (seconds since the epoch)."""
    rows = run / "steps.jsonl"
    lines = rows.read_bytes().splitlines(keepends=True) if rows.is_file() else []
    whole = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return max((row["step"] for row in whole if row["time"] > since), default=0)


def is_time_for(kill: Kill, run: Path) -> Callable[[], bool]:
    """Asked again and again while a launch runs: whether its moment has come."""
    begin = time.time()
    due: list[float] = []

    def now() -> bool:
        if not due:
            if kill.step is not None and last_step(run, since=begin) < kill.step:
                return False
            if kill.inside and not list((run / "checkpoints").glob(".saving-*")):
                return False
            due.append(time.time() + kill.seconds)
        return time.time() >= due[0]

    return now


def complete(run: Path) -> list[int]:
    """Steps of the checkpoints, every byte of each as its manifest says."""
    steps = []
    for directory in sorted((run / "checkpoints").glob("step-*")):
        manifest = read_manifest(directory)
        assert damaged_files(directory, manifest) == []
        steps.append(manifest.step)
    return steps


def train(part: Part, *, steps: int, name: str, cwd: Path) -> Finished:
    return run_forked(
        *(*WORDS, f"optim.steps={steps}", f"run.name={name}", *part.words()),
        processes=part.processes,
        cwd=cwd,
        kill_when=is_time_for(part.kill, cwd / "runs/demo" / name) if part.kill else None,
        seconds=600,
    )


@pytest.mark.parametrize(
    ("seed", "kills", "starting"),
    [
        pytest.param(36, 3, 0, id="3 kills"),
        pytest.param(2, 20, 3, id="20 kills", marks=pytest.mark.slow),
    ],
)
def test_whatever_kills_it_the_run_is_the_same(
    prepared: Path, seed: int, kills: int, starting: int
) -> None:
    steps = 2 * kills + 12  # enough after the last kill that none comes when all is done
    whole = Part(processes=1, zero_stage=1, micro=2, kill=None)
    ended = train(whole, steps=steps, name=f"never-killed-{kills}", cwd=prepared)
    assert ended.code == 0, ended.err
    run, inside = prepared / f"runs/demo/killed-{kills}-times", 0
    for part in parts(seed, kills=kills, starting=starting):
        before = complete(run)
        ended = train(part, steps=steps, name=run.name, cwd=prepared)
        assert ended.code == (-9 if part.kill else 0), f"{part}\n{ended.err}"
        resumed = re.findall(r"resuming from \S+/step-(\d+)", ended.err)
        assert [int(step) for step in resumed] in ([], before[-1:]), ended.err
        assert "passed over" not in ended.err
        inside += any((run / "checkpoints").glob(".saving-*"))
    assert inside >= kills // 4, "too few kills came inside a save to show anything"
    rows, wanted = rows_of(run), rows_of(prepared / f"runs/demo/never-killed-{kills}")
    assert [[row[name] for name in EXACT] for row in rows] == [
        [row[name] for name in EXACT] for row in wanted
    ]
    assert [row["loss"] for row in rows] == pytest.approx([r["loss"] for r in wanted], abs=1e-4)
    ledger, kept = (
        (prepared / "runs/demo" / name / "ledger.jsonl").read_text()
        for name in (run.name, f"never-killed-{kills}")
    )
    assert ledger == kept
    assert ledger.count("\n") == sum(row["holes"] for row in wanted) > 0
