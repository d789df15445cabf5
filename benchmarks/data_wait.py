"""What share of a run's steps is waiting for data.

    python benchmarks/data_wait.py runs/demo     (after make quickstart, on a quiet machine)

In: a folder of runs. Out: waiting over all time of steps (``data_wait_seconds`` and ``seconds`` of
steps.jsonl), of each run; its first step, which waits for the first window to be planned and read,
counts too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from results import arguments, report

from vltrain.metrics.rows import read_rows

GOAL = 0.01


def main() -> None:
    options = arguments("Waiting for data.")
    options.add_argument("root", type=Path, help="the folder that the runs lie in")
    parsed = options.parse_args()
    waits = {path.parent.name: waited(path) for path in sorted(parsed.root.glob("*/steps.jsonl"))}
    if not waits:
        raise SystemExit(f"no run in {parsed.root} has a steps.jsonl; train first")
    report(
        "data_wait",
        figures={
            name: {
                "steps": len(wait),
                "share": share(wait),
                "share_without_the_first_step": share(wait[1:]),
                "median_wait_ms": 1e3 * float(np.median(wait[:, 0])),
                "longest_wait_ms": 1e3 * float(wait[:, 0].max()),
                "mean_step_ms": 1e3 * float(wait[:, 1].mean()),
            }
            for name, wait in waits.items()
        },
        goals={
            f"share of the time of {name}'s steps": (share(wait), "<=", GOAL)
            for name, wait in waits.items()
        },
        draw=lambda figure: draw(figure, waits),
        out=parsed.out,
    )


def waited(path: Path) -> np.ndarray:
    """(steps, 2): seconds waited for data and seconds of every step."""
    return np.array([(row.data_wait_seconds, row.seconds) for row in read_rows(path)])


def share(wait: np.ndarray) -> float:
    return float(wait[:, 0].sum() / wait[:, 1].sum())


def draw(figure: Figure, waits: dict[str, np.ndarray]) -> None:
    axes = figure.subplots()
    for name, wait in waits.items():
        share_of_step = np.sort(wait[:, 0] / wait[:, 1])
        axes.plot(np.linspace(0, 1, len(wait)), 100 * share_of_step, label=name)
    axes.axhline(100 * GOAL, color="grey", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xlabel("share of steps")
    axes.set_ylabel("waiting for data, % of the step, at most")
    axes.legend()


if __name__ == "__main__":
    main()
