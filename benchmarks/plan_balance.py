"""How evenly the work of a step is given to ranks, and what keeping blocks on one node would cost.

    python benchmarks/plan_balance.py

Steps of 2,304 packs on 64 and 512 ranks, by the operations of the 7B model: the busiest rank over
the mean, for the step and were ranks to wait for each other after every micro-batch; beside packs
given out in turn. And how many nodes read from each block of 256 neighbours: as assigned, and
with packs given to the node that already reads most of their blocks.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from results import arguments, report
from synthetic import pictures, plan_of, texts

from vltrain.batch import MicroBatchPlan, PackPlan, StepPlan
from vltrain.data.assign import WorkCost, assign_all, imbalance, work_of
from vltrain.data.config import MixtureConfig

COST_7B = WorkCost(token=38.9e9, token_squared=0.737e6, image_token=1.38e12 / 576)
"""FLOPs of stage 2 at 7B: blocks and head forward and backward, attention, both encoders."""
BLOCK = 256


def main() -> None:
    options = arguments("Balance of work between ranks.")
    parsed = options.parse_args()
    steps = 2 if parsed.quick else 10
    figures: dict[str, Any] = {}
    worst = 0.0
    for grouping in (False, True):
        planned = steps_of(steps, grouping=grouping)
        for ranks, micro in ((64, 1), (64, 4), (512, 1)):
            found = balance(planned, ranks=ranks, micro=micro)
            figures[f"{'grouped' if grouping else 'mixed'}, {ranks} ranks, micro {micro}"] = found
            if ranks == 64:
                worst = max(worst, found["step"])
    figures["nodes"] = locality(steps_of(2, grouping=True), nodes=8)
    report(
        "plan_balance",
        figures=figures,
        goals={"busiest of 64 ranks over the mean": (worst, "<=", 1.02)},
        draw=lambda figure: draw(figure, figures),
        out=parsed.out,
    )


def steps_of(steps: int, *, grouping: bool) -> list[StepPlan]:
    mixture = MixtureConfig(language_share=0.7, grouping=grouping)
    return list(itertools.islice(plan_of([texts(), pictures()], mixture=mixture).steps(), steps))


def balance(steps: Sequence[StepPlan], *, ranks: int, micro: int) -> dict[str, float]:
    """Worst over the steps. ``step``: a rank's whole step; ``lockstep``: were ranks to wait for
    each other after every micro-batch; ``in_turn``: packs given to ranks in turn. ``limit``: of any
    way, were all packs alike (where ranks do not divide the packs, some have one more)."""
    slots = ranks * micro
    limit = -(-len(steps[0].packs) // slots) * slots / len(steps[0].packs)
    found = {"step": 0.0, "lockstep": 0.0, "in_turn": 0.0, "limit": limit}
    for step in steps:
        assigned = assign_all(step, world=ranks, micro=micro, cost=COST_7B)
        dealt = [
            [
                MicroBatchPlan(step=0, micro=i, packs=step.packs[at : at + micro], num_slots=micro)
                for i, at in enumerate(range(rank * micro, len(step.packs), ranks * micro))
            ]
            for rank in range(ranks)
        ]
        found["step"] = max(found["step"], imbalance(assigned, cost=COST_7B))
        found["lockstep"] = max(found["lockstep"], lockstep(assigned))
        found["in_turn"] = max(found["in_turn"], imbalance(dealt, cost=COST_7B))
    return found


def lockstep(assigned: Sequence[Sequence[MicroBatchPlan]]) -> float:
    """Time of a step in which every micro-batch takes as long as its busiest rank, over the time of
    an even one."""
    longest = total = 0.0
    for turn in zip(*assigned, strict=True):
        work = [work_of(micro.packs, COST_7B) for micro in turn]
        longest += max(work)
        total += sum(work)
    return longest * len(assigned) / total


def locality(steps: Sequence[StepPlan], *, nodes: int) -> dict[str, float]:
    """Mean number of nodes that read from a block in a step."""
    as_assigned, preferring = [], []
    for step in steps:
        by_rank = assign_all(step, world=8 * nodes, micro=1, cost=COST_7B)
        where = {
            pack.number: rank // 8
            for rank, mine in enumerate(by_rank)
            for micro in mine
            for pack in micro.packs
        }
        as_assigned.append(nodes_per_block(step.packs, where))
        preferring.append(nodes_per_block(step.packs, nodes_by_preference(step.packs, nodes)))
    return {
        "nodes_per_block_as_assigned": sum(as_assigned) / len(steps),
        "nodes_per_block_preferring": sum(preferring) / len(steps),
        "nodes": float(nodes),
    }


def blocks_of(pack: PackPlan) -> set[tuple[int, int]]:
    return {(ref.source, ref.piece // BLOCK) for ref in pack.pieces}


def nodes_per_block(packs: Sequence[PackPlan], where: dict[int, int]) -> float:
    readers = defaultdict(set)
    for pack in packs:
        for block in blocks_of(pack):
            readers[block].add(where[pack.number])
    return sum(map(len, readers.values())) / len(readers)


def nodes_by_preference(packs: Sequence[PackPlan], nodes: int) -> dict[int, int]:
    """Each pack to the node that reads most of its blocks already and has room; equal counts."""
    room = [-(-len(packs) // nodes)] * nodes
    reads: list[set[tuple[int, int]]] = [set() for _ in range(nodes)]
    where = {}
    for pack in packs:
        blocks = blocks_of(pack)
        free = [node for node in range(nodes) if room[node]]
        best = max(free, key=lambda node: (len(blocks & reads[node]), room[node]))
        where[pack.number] = best
        reads[best] |= blocks
        room[best] -= 1
    return where


def draw(figure: Figure, figures: dict[str, Any]) -> None:
    axes = figure.subplots()
    cases = {name: found for name, found in figures.items() if "step" in found}
    for shift, key in enumerate(("step", "lockstep", "in_turn", "limit")):
        places = [i + 0.2 * (shift - 1.5) for i in range(len(cases))]
        values = [found[key] for found in cases.values()]
        axes.bar(places, values, width=0.18, label=key.replace("_", " "))
    axes.set_xticks(range(len(cases)), [name.replace(", ", "\n") for name in cases], fontsize=7)
    axes.set_ylim(0.95)
    axes.axhline(1.02, color="gray", linestyle=":")
    axes.set_ylabel("work of the busiest rank / mean")
    axes.legend()


if __name__ == "__main__":
    main()
