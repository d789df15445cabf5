"""How far apart neighbours of a shard land.

    python benchmarks/plan_shuffle.py

Texts at 4,096 tokens, one epoch of 300,000: pairs of neighbours, and pairs that lie one block
apart, in steps of 2,304 and of 256 packs. Exact: another machine gives the same figures.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from results import arguments, report
from synthetic import plan_of, texts

from vltrain.batch import StepPlan
from vltrain.data.config import MixtureConfig
from vltrain.data.spread import spread_of_neighbours


def main() -> None:
    options = arguments("Shuffle quality of the plan.")
    parsed = options.parse_args()
    samples = 30_000 if parsed.quick else 300_000
    figures: dict[str, Any] = {}
    for sequences in (2304, 256):
        steps = epoch(samples, sequences=sequences)
        for apart in (1, 256):
            spread = spread_of_neighbours(steps, source=0, places_apart=apart)
            figures[f"{apart} apart, steps of {sequences}"] = asdict(spread)
    near = figures["1 apart, steps of 2304"]
    report(
        "plan_shuffle",
        figures=figures,
        goals={"half of the neighbours are farther apart, packs": (near["median_packs"], ">=", 1)},
        draw=lambda figure: draw(figure, figures),
        out=parsed.out,
    )
    for name, spread in figures.items():
        print(name, {key: round(value, 4) for key, value in spread.items()})


def epoch(samples: int, *, sequences: int) -> list[StepPlan]:
    """The steps of one epoch."""
    plan = plan_of([texts(samples)], sequences=sequences, mixture=MixtureConfig(language_share=1.0))
    found = []
    for step in plan.steps():
        positions = step.cursor_after["positions"]
        assert isinstance(positions, list)
        if positions[0] > samples:
            break
        found.append(step)
    return found


def draw(figure: Figure, figures: dict[str, Any]) -> None:
    axes = figure.subplots()
    places = np.arange(len(figures))
    axes.bar(places - 0.2, [s["tenth_packs"] for s in figures.values()], 0.4, label="a tenth below")
    axes.bar(places + 0.2, [s["median_packs"] for s in figures.values()], 0.4, label="half below")
    axes.set_yscale("log")
    axes.set_xticks(places, list(figures), fontsize=7)
    axes.set_ylabel("distance of two neighbours, packs")
    axes.legend()


if __name__ == "__main__":
    main()
