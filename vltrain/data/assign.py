"""Who trains on which pack of a step.

In: a planned step, the number of ranks, packs per micro-batch, and what work costs. Out: for one
rank, its micro-batches. Every pack goes to exactly one rank; every rank gets the same number of
micro-batches, so collectives stay equal; slots that are left over are blank packs, spread evenly.
Nothing here changes what a step holds, so ranks and micro-batch may change on resume.

Packs of like length share a micro-batch (no padding is lost where a stage does not pack), and
micro-batches go, the costliest first, each to the rank with the least work that still has room. A
rank's micro-batches run in the order of their cost, so that what ranks do at the same moment is
alike too.

Cost: about 15 milliseconds for 2,304 packs, the same on all ranks, no communication. Rejected:
packs in turn (`benchmarks/plan_balance.py` shows the spread); balancing tokens alone
(an image costs as much as thousands of tokens in a small model).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from vltrain.batch import MicroBatchPlan, PackPlan, StepPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkCost:
    """Work of one token, of one squared piece length (attention), and of the vision side for one
    image token (a square's tokens are all alike; where images are tiled, newlines and separators
    make a square up to 7 % dearer or cheaper than it is); in any one unit."""

    token: float
    token_squared: float
    image_token: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Share:
    """A micro-batch before it has a rank. ``order`` makes ties definite."""

    work: float
    order: int
    packs: tuple[PackPlan, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Assigned:
    """What one rank gets of a step. micros: in the order in which they run. imbalance: work of the
    busiest of all ranks over their mean."""

    micros: tuple[MicroBatchPlan, ...]
    imbalance: float


def micro_batches_per_rank(num_packs: int, *, world: int, micro: int) -> int:
    """Micro-batches that every rank runs for a step of ``num_packs`` packs."""
    return -(-num_packs // (world * micro))


def assign(
    step: StepPlan, *, world: int, micro: int, rank: int, cost: WorkCost
) -> tuple[MicroBatchPlan, ...]:
    """The micro-batches of ``rank``, in the order in which they run."""
    return assigned_to(step, world=world, micro=micro, rank=rank, cost=cost).micros


def assigned_to(step: StepPlan, *, world: int, micro: int, rank: int, cost: WorkCost) -> Assigned:
    """As ``assign``, with how even the ranks' shares are, which costs nothing more."""
    assert 0 <= rank < world, (rank, world)
    ranks = _shares_of_ranks(step, world=world, micro=micro, cost=cost)
    return Assigned(
        micros=_micro_batches(step, ranks[rank], micro=micro),
        imbalance=_max_over_mean([sum(share.work for share in mine) for mine in ranks]),
    )


def assign_all(
    step: StepPlan, *, world: int, micro: int, cost: WorkCost
) -> list[tuple[MicroBatchPlan, ...]]:
    """The micro-batches of every rank."""
    ranks = _shares_of_ranks(step, world=world, micro=micro, cost=cost)
    return [_micro_batches(step, mine, micro=micro) for mine in ranks]


def _shares_of_ranks(
    step: StepPlan, *, world: int, micro: int, cost: WorkCost
) -> list[list[_Share]]:
    per_rank = micro_batches_per_rank(len(step.packs), world=world, micro=micro)
    shares = _cut(step.packs, parts=world * per_rank, cost=cost)
    ranks: list[list[_Share]] = [[] for _ in range(world)]
    least_loaded = [(0.0, rank) for rank in range(world)]
    for share in sorted(shares, key=lambda s: (-s.work, s.order)):
        work, rank = heapq.heappop(least_loaded)
        ranks[rank].append(share)
        if len(ranks[rank]) < per_rank:
            heapq.heappush(least_loaded, (work + share.work, rank))
    return ranks


def _micro_batches(
    step: StepPlan, shares: Sequence[_Share], *, micro: int
) -> tuple[MicroBatchPlan, ...]:
    return tuple(
        MicroBatchPlan(step=step.step, micro=i, packs=share.packs, num_slots=micro)
        for i, share in enumerate(shares)
    )


def _cut(packs: Sequence[PackPlan], *, parts: int, cost: WorkCost) -> list[_Share]:
    """Packs in order of length, cut into ``parts`` runs whose sizes differ by at most one pack."""
    by_length = sorted(packs, key=lambda pack: (-pack.tokens, pack.number))
    edges = [part * len(packs) // parts for part in range(parts + 1)]
    runs = [tuple(by_length[first:last]) for first, last in itertools.pairwise(edges)]
    return [
        _Share(work=work_of(run, cost), order=order, packs=run) for order, run in enumerate(runs)
    ]


def work_of(packs: Sequence[PackPlan], cost: WorkCost) -> float:
    """Work of one micro-batch: its packs are padded to the longest."""
    if not packs:
        return 0.0
    padded_tokens = len(packs) * max(pack.tokens for pack in packs)
    squares = sum(piece.tokens * piece.tokens for pack in packs for piece in pack.pieces)
    image_tokens = sum(pack.image_tokens for pack in packs)
    vision = cost.image_token * image_tokens
    return cost.token * padded_tokens + cost.token_squared * squares + vision


def imbalance(assigned: Sequence[Sequence[MicroBatchPlan]], *, cost: WorkCost) -> float:
    """Work of the busiest rank over the mean, for one step."""
    return _max_over_mean([sum(work_of(m.packs, cost) for m in mine) for mine in assigned])


def _max_over_mean(work: Sequence[float]) -> float:
    return max(work) * len(work) / sum(work)
