"""How closely the plan holds 7 : 3 in tokens, and what drawing sources by chance makes of it.

    python benchmarks/plan_ratio.py

1,000 steps, with language samples of like length, ten times longer and ten times shorter than
multimodal ones; grouped and not; with and without a ramp. Peers on the same lengths: a source
drawn by chance for every sample, with probability 0.7, and with probabilities made from the mean
lengths. Realised: what is left when one record in a thousand turns out bad.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from results import arguments, report
from synthetic import SEQUENCE_LENGTH, SyntheticTable, pictures, plan_of, texts

from vltrain.batch import StepPlan
from vltrain.data.config import MixtureConfig, PackingConfig, RampConfig, RampKind

SHARE = 0.7
SEQUENCES = 64
BAD = 0.001

Lengths = dict[str, list[SyntheticTable]]


def main() -> None:
    options = arguments("Token ratio of the plan.")
    parsed = options.parse_args()
    steps = 100 if parsed.quick else 1000
    cases: Lengths = {
        "like lengths": [texts(median=545), pictures()],
        "language ten times longer": [texts(median=1200), pictures(image_share=0.0)],
        "language ten times shorter": [texts(median=40), pictures()],
    }
    figures: dict[str, Any] = {}
    curves: dict[str, list[float]] = {}
    for name, tables in cases.items():
        figures[name] = {"mean_tokens": [mean_tokens(table) for table in tables]}
        for grouping in (False, True):
            for ramp in (0, steps // 5):
                case = f"{'grouped' if grouping else 'mixed'}{', ramp' if ramp else ''}"
                found, curve = measured(tables, steps, grouping=grouping, ramp_steps=ramp)
                figures[name][case] = found
                curves[f"{name}, {case}"] = curve
        figures[name]["by chance"] = by_chance(tables, steps)
    found = [case for name in cases for case in figures[name].values() if isinstance(case, dict)]
    planned = [case for case in found if "largest_error_steps" in case]
    report(
        "plan_ratio",
        figures=figures,
        goals={
            "largest ratio error, points": (
                max(case["ratio_error_points"] for case in planned),
                "<=",
                0.1,
            ),
            "largest cumulative error, steps' tokens": (
                max(case["largest_error_steps"] for case in planned),
                "<=",
                1.0,
            ),
        },
        draw=lambda figure: draw(figure, curves),
        out=parsed.out,
    )


def mean_tokens(table: SyntheticTable) -> float:
    return float(table.pieces_of_samples(0, 100_000).tokens.mean())


def measured(
    tables: list[SyntheticTable], steps: int, *, grouping: bool, ramp_steps: int
) -> tuple[dict[str, float], list[float]]:
    """Figures of one plan, and its cumulative error after every step, in steps' tokens."""
    ramp = RampConfig(
        kind=RampKind.cosine if ramp_steps else RampKind.none, steps=ramp_steps, start_share=1.0
    )
    plan = plan_of(
        tables,
        sequences=SEQUENCES,
        mixture=MixtureConfig(language_share=SHARE, grouping=grouping, ramp=ramp),
        packing=PackingConfig(enabled=True, sequence_length=SEQUENCE_LENGTH),
    )
    target = language = total = largest = realised_language = realised = 0.0
    curve = []
    for step in itertools.islice(plan.steps(), steps):
        tokens = sum(step.tokens.values())
        total += tokens
        largest = max(largest, tokens)
        target += step.language_share_target * tokens
        language += step.tokens["language"]
        curve.append((language - target) / largest)
        bad_language, bad = tokens_of_bad_records(step)
        realised_language += step.tokens["language"] - bad_language
        realised += tokens - bad
    return {
        "planned_language_share": language / total,
        "target_language_share": target / total,
        "realised_language_share": realised_language / realised,
        "ratio_error_points": 100 * abs(language - target) / total,
        "largest_error_steps": max(map(abs, curve)),
    }, curve


def tokens_of_bad_records(step: StepPlan) -> tuple[int, int]:
    """(language tokens, all tokens) of the step's records that are taken to be bad."""
    bad = np.random.Generator(np.random.Philox(step.step)).random
    language = total = 0
    for pack in step.packs:
        for ref in pack.pieces:
            if bad() < BAD:
                total += ref.tokens
                language += ref.tokens * (ref.source == 0)
    return language, total


def by_chance(tables: list[SyntheticTable], steps: int) -> dict[str, float]:
    """Language share in tokens when a source is drawn by chance for every sample."""
    draw = np.random.Generator(np.random.Philox(7))
    wanted = steps * SEQUENCES * SEQUENCE_LENGTH
    means = [mean_tokens(table) for table in tables]
    by_length = SHARE / means[0] / (SHARE / means[0] + (1 - SHARE) / means[1])
    shares = {}
    for name, probability in (("by samples", SHARE), ("by mean lengths", by_length)):
        mean = probability * means[0] + (1 - probability) * means[1]
        samples = min(int(wanted / mean), 900_000)
        language = int((draw.random(samples) < probability).sum())
        tokens = [
            int(table.pieces_of_samples(0, count).tokens.sum(dtype=np.int64))
            for table, count in zip(tables, (language, samples - language), strict=True)
        ]
        shares[name] = tokens[0] / sum(tokens)
    return shares


def draw(figure: Figure, curves: dict[str, list[float]]) -> None:
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(range(1, len(curve) + 1), curve, linewidth=0.7, label=name)
    axes.axhline(1, color="gray", linestyle=":")
    axes.axhline(-1, color="gray", linestyle=":")
    axes.set_xlabel("step")
    axes.set_ylabel("language tokens over target, in steps")
    axes.legend(fontsize=6, ncols=2)


if __name__ == "__main__":
    main()
