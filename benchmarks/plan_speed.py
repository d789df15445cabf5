"""What planning, restoring and remembering cost.

    python benchmarks/plan_speed.py        (on a machine that does nothing else)

Planner samples/s on one core; the share of a step that a rank plans for, at the published 7B
settings; a restore at some places of a stream of 1,000,000 samples, beside the time of one window;
the cursor's size; memory of the plan by the size of the data set.
"""

from __future__ import annotations

import itertools
import json
import time
import tracemalloc
from statistics import median
from typing import Any

from matplotlib.figure import Figure
from results import arguments, report
from synthetic import pictures, plan_of, texts

from vltrain.data.assign import WorkCost, assign
from vltrain.data.config import MixtureConfig, PackingConfig
from vltrain.data.plan import Plan

RANKS, MICRO = 512, 1
STEP_SECONDS = 2304 * 4096 / (512 * 1852)
"""DeepSeek-VL-7B, stage 2: 2,304 sequences of 4,096 tokens on 512 A100 at the 1,852 tokens/s each
that five days of training come to: 10 s a step."""
COST_7B = WorkCost(token=38.9e9, token_squared=0.737e6, image_token=1.38e12 / 576)


def main() -> None:
    options = arguments("Cost of planning.")
    parsed = options.parse_args()
    scale = 10 if parsed.quick else 1
    speed = {
        name: planning(steps=20 // scale or 2, grouping=grouping, texts_per_sample=top_up)
        for name, grouping, top_up in (
            ("mixed", False, 0.0),
            ("grouped", True, 0.0),
            ("grouped, text top-up", True, 0.5),
        )
    }
    restored = {
        name: restoring(grouping=grouping, steps=2000 // scale)
        for name, grouping in (("mixed", False), ("grouped", True))
    }
    remembered = memory([10**6, 10**7] if parsed.quick else [10**6, 10**7, 10**8])
    report(
        "plan_speed",
        figures={"planning": speed, "restoring": restored, "memory": remembered},
        goals={
            "planner, samples/s on a core": (
                min(case["samples_per_second"] for case in speed.values()),
                ">=",
                100_000,
            ),
            "planning and assigning, % of a step": (
                max(case["percent_of_step"] for case in speed.values()),
                "<=",
                2.0,
            ),
            "restore beyond one window, ms": (
                max(case["beyond_one_window_ms"] for case in restored.values()),
                "<=",
                10.0,
            ),
            "cursor, bytes": (max(c["cursor_bytes"] for c in restored.values()), "<=", 65536),
        },
        draw=lambda figure: draw(figure, restored, remembered),
        out=parsed.out,
    )


def _plan(*, grouping: bool, texts_per_sample: float = 0.0, sequences: int = 2304) -> Plan:
    return plan_of(
        [texts(), pictures()],
        sequences=sequences,
        mixture=MixtureConfig(language_share=0.7, grouping=grouping),
        packing=PackingConfig(
            enabled=True, sequence_length=4096, top_up_texts_per_sample=texts_per_sample
        ),
    )


def planning(*, steps: int, grouping: bool, texts_per_sample: float) -> dict[str, float]:
    """CPU seconds of planning and of finding one rank's share."""
    walk = _plan(grouping=grouping, texts_per_sample=texts_per_sample).steps()
    next(walk)
    begin = time.process_time()
    planned = list(itertools.islice(walk, steps))
    plan_seconds = time.process_time() - begin
    begin = time.process_time()
    for step in planned:
        assign(step, world=RANKS, micro=MICRO, rank=0, cost=COST_7B)
    assign_seconds = time.process_time() - begin
    samples = sum(len(pack.pieces) for step in planned for pack in step.packs)
    return {
        "samples_per_second": samples / plan_seconds,
        "plan_ms_per_step": 1e3 * plan_seconds / steps,
        "assign_ms_per_step": 1e3 * assign_seconds / steps,
        "percent_of_step": 100 * (plan_seconds + assign_seconds) / steps / STEP_SECONDS,
    }


def restoring(*, grouping: bool, steps: int) -> dict[str, Any]:
    """A restore and the next step of one pack, beside planning one window that is at hand."""
    sequences = 64
    through = list(itertools.islice(_plan(grouping=grouping, sequences=sequences).steps(), steps))
    milliseconds = []
    for place in range(steps // 10, steps - 1, max(1, steps // 10)):
        cursor = json.loads(json.dumps(through[place].cursor_after))
        fresh = _plan(grouping=grouping, sequences=sequences)
        begin = time.process_time()
        after = next(fresh.steps(cursor))
        with_restore = time.process_time() - begin
        assert after == through[place + 1], "the restored plan differs"
        # The same again with the sizes at hand: what the step itself costs, its open window too.
        begin = time.process_time()
        next(fresh.steps(cursor))
        milliseconds.append((1e3 * with_restore, 1e3 * (time.process_time() - begin)))
    return {
        "restore_and_step_ms": [round(first, 2) for first, _ in milliseconds],
        "step_from_cursor_again_ms": [round(again, 2) for _, again in milliseconds],
        "beyond_one_window_ms": median(first - again for first, again in milliseconds),
        "cursor_bytes": max(len(json.dumps(step.cursor_after)) for step in through),
    }


def memory(sizes: list[int]) -> list[dict[str, float]]:
    """What a plan holds after a step, by the samples of each of its two sources."""
    found = []
    for samples in sizes:
        tables = [texts(samples), pictures(samples)]
        tracemalloc.start()
        plan = plan_of(tables, sequences=64)
        step = next(plan.steps())
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert step.packs
        found.append(
            {"samples": 2 * samples, "bytes": held, "bytes_per_sample": held / 2 / samples}
        )
    return found


def draw(figure: Figure, restored: dict[str, Any], remembered: list[dict[str, float]]) -> None:
    left, right = figure.subplots(1, 2)
    for name, case in restored.items():
        left.plot(case["restore_and_step_ms"], marker="o", label=f"{name}: restore and step")
        left.plot(case["step_from_cursor_again_ms"], linestyle=":", label=f"{name}: sizes at hand")
    left.set_xlabel("place in the stream, tenths")
    left.set_ylabel("CPU ms")
    left.set_ylim(0)
    left.legend(fontsize=7)
    right.loglog(
        [row["samples"] for row in remembered], [row["bytes"] / 2**20 for row in remembered], "o-"
    )
    right.set_xlabel("samples in the mix")
    right.set_ylabel("plan's memory, MiB")


if __name__ == "__main__":
    main()
