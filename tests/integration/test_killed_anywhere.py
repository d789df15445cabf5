"""Killed at a random step, twice in a row, and continued each time with other numbers of processes
and workers and another micro-batch: the chain of digests is that of the data read straight
through."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from launching import DEMO, composed, deepspeed, launch, prepare_here, rows_of

from vltrain.assemble.datapath import open_data, step_loader
from vltrain.train.agree import agree

STEPS = 10
# Which weights are trained does not matter here, so no stage has to come before.
WORDS = (
    *("stage=2", *DEMO, "init_from=null", "model.weights.allow_random=true"),
    *(f"optim.steps={STEPS}", "checkpoint.every_steps=2"),
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One launch. after: it is killed when so many rows are written (None: it runs to its end)."""

    processes: int
    workers: int
    micro: int
    after: int | None


def parts(seed: int, *shapes: tuple[int, int, int]) -> list[Part]:
    """Launches of (processes, workers, micro-batch), killed at two random steps."""
    kills = sorted(random.Random(seed).sample(range(1, STEPS - 1), len(shapes) - 1))
    return [
        Part(processes=processes, workers=workers, micro=micro, after=after)
        for (processes, workers, micro), after in zip(shapes, [*kills, None], strict=True)
    ]


@pytest.fixture(scope="module")
def straight_through(workspace: Path) -> list[tuple[int, str]]:
    """(step, chain) of all steps, read in this process without training."""
    prepare_here(workspace, *WORDS)
    config = composed(*WORDS)
    chains, head = [], ""
    with contextlib.chdir(workspace):
        loader = step_loader(config, open_data(config), cursor=None, rank=0, world=1)
        for plan, micros in loader:
            head = agree(plan, micros, chain_head=head).chain
            chains.append((plan.step + 1, head))
    return chains


@pytest.mark.slow
@pytest.mark.parametrize(
    "launches",
    [
        parts(1, (2, 0, 2), (1, 3, 1), (4, 1, 1)),
        parts(2, (3, 1, 1), (4, 0, 1), (2, 3, 2)),
        parts(3, (1, 0, 4), (3, 3, 1), (1, 1, 2)),
    ],
    ids=lambda launches: "-".join(f"{p.processes}x{p.workers}x{p.micro}" for p in launches),
)
def test_the_chain_is_that_of_the_data_read_straight_through(
    launches: list[Part], straight_through: list[tuple[int, str]], workspace: Path
) -> None:
    name = "anywhere-" + "-".join(f"{p.processes}{p.workers}{p.micro}" for p in launches)
    run = workspace / "runs/demo" / name
    for part in launches:

        def is_far_enough(after: int | None = part.after) -> bool:
            rows = run / "steps.jsonl"
            return after is not None and rows.is_file() and rows.read_bytes().count(b"\n") >= after

        ended = launch(
            deepspeed("--num_gpus", str(part.processes)),
            *WORDS,
            f"run.name={name}",
            f"data.loader.workers={part.workers}",
            f"data.batch.micro={part.micro}",
            cwd=workspace,
            kill_when=is_far_enough,
            seconds=400,
        )
        # A run that was past its last step before the kill reached it has nothing more to show.
        assert ended.code == (0 if part.after is None else -9), ended.err
    assert [(row["step"], row["chain"]) for row in rows_of(run)] == straight_through
