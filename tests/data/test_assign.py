"""Packs to ranks: each once, equal collectives, balanced work, like lengths together."""

from __future__ import annotations

import dataclasses

import pytest
from plan_fakes import make_plan, picture_table, text_table

from vltrain.batch import Modality, PackPlan, PieceRef, StepPlan
from vltrain.data.assign import (
    WorkCost,
    assign,
    assign_all,
    assigned_to,
    imbalance,
    micro_batches_per_rank,
)
from vltrain.data.config import MixtureConfig

COST_7B = WorkCost(token=38.9e9, token_squared=0.737e6, image_token=1.38e12 / 576)
"""FLOPs of stage 2 at 7B: 6 (B + H) per token, 6 h L per squared token, both encoders for an image
of 576 tokens."""

TOKENS = WorkCost(token=1.0, token_squared=0.0, image_token=0.0)


def step_of(lengths: list[int]) -> StepPlan:
    packs = tuple(
        PackPlan(number=i, modality=Modality.language, pieces=(piece(i, n),))
        for i, n in enumerate(lengths)
    )
    return StepPlan(
        step=3,
        modality=None,
        packs=packs,
        tokens={},
        supervised={},
        language_share_target=1.0,
        cursor_after={},
    )


def piece(number: int, tokens: int) -> PieceRef:
    return PieceRef(source=0, piece=number, tokens=tokens, supervised=1, image_tokens=0, images=0)


def numbers(assigned) -> list[list[list[int]]]:
    return [[[p.number for p in micro.packs] for micro in mine] for mine in assigned]


def test_two_ranks_by_hand():
    # 9 | 7 to the least loaded, then 5 to the second, 4 to the first, costliest micro-batch first.
    step = step_of([4, 9, 5, 7])
    assert numbers(assign_all(step, world=2, micro=1, cost=TOKENS)) == [[[1], [0]], [[3], [2]]]
    assert assign(step, world=2, micro=1, rank=1, cost=TOKENS)[0].packs[0].number == 3


def test_every_rank_knows_how_even_the_step_is():
    # 9 + 4 and 7 + 5: 13 over a mean of 12.5.
    for rank in (0, 1):
        found = assigned_to(step_of([4, 9, 5, 7]), world=2, micro=1, rank=rank, cost=TOKENS)
        assert found.imbalance == 13 / 12.5
    # Packs of one micro-batch are padded to the longest: 2 x 9 and 2 x 5.
    found = assigned_to(step_of([4, 9, 5, 7]), world=2, micro=2, rank=0, cost=TOKENS)
    assert found.imbalance == 18 / 14


def test_image_tokens_are_work():
    """Two packs of equal length: the one that is all image costs more."""
    step = step_of([4, 4, 3, 3])
    pictured = dataclasses.replace(piece(2, 3), image_tokens=3, images=1)
    packs = list(step.packs)
    packs[2] = dataclasses.replace(packs[2], pieces=(pictured,))
    step = dataclasses.replace(step, packs=tuple(packs))
    cost = WorkCost(token=1.0, token_squared=0.0, image_token=10.0)
    # 33 alone; then 4, 4 and 3 to the rank that has less until it is full.
    assert numbers(assign_all(step, world=2, micro=1, cost=cost)) == [[[2], [3]], [[0], [1]]]


def test_like_lengths_share_a_micro_batch():
    step = step_of([10, 1, 9, 2, 8, 3])
    assert numbers(assign_all(step, world=1, micro=2, cost=TOKENS)) == [[[0, 2], [4, 5], [3, 1]]]


@pytest.mark.parametrize(
    ("packs", "world", "micro"), [(10, 4, 1), (7, 2, 4), (1, 3, 2), (64, 8, 3)]
)
def test_every_pack_once_and_equal_collectives(packs, world, micro):
    step = step_of(list(range(1, packs + 1)))
    assigned = assign_all(step, world=world, micro=micro, cost=TOKENS)
    per_rank = micro_batches_per_rank(packs, world=world, micro=micro)
    assert all(len(mine) == per_rank for mine in assigned)
    assert all(m.micro == i for mine in assigned for i, m in enumerate(mine))
    assert all(len(m.packs) <= m.num_slots == micro for mine in assigned for m in mine)
    flat = [n for mine in numbers(assigned) for micro_batch in mine for n in micro_batch]
    assert sorted(flat) == list(range(packs))
    for rank in range(world):
        assert assign(step, world=world, micro=micro, rank=rank, cost=TOKENS) == assigned[rank]


def test_blank_slots_are_spread_evenly():
    sizes = [
        len(m.packs)
        for mine in assign_all(step_of([5] * 10), world=2, micro=4, cost=TOKENS)
        for m in mine
    ]
    assert sorted(sizes) == [2, 2, 3, 3]


def test_a_rank_outside_the_world_is_our_own_mistake():
    with pytest.raises(AssertionError):
        assign(step_of([1]), world=2, micro=1, rank=2, cost=TOKENS)


@pytest.mark.parametrize("grouping", [False, True])
def test_imbalance_of_the_published_step_on_64_ranks(grouping):
    plan = make_plan(
        [text_table(), picture_table()],
        sequences=2304,
        mixture=MixtureConfig(language_share=0.7, grouping=grouping),
    )
    for _, step in zip(range(2), plan.steps(), strict=False):
        for micro in (1, 4):
            assigned = assign_all(step, world=64, micro=micro, cost=COST_7B)
            assert imbalance(assigned, cost=COST_7B) <= 1.02
            mine = assigned_to(step, world=64, micro=micro, rank=9, cost=COST_7B)
            assert mine.imbalance == pytest.approx(imbalance(assigned, cost=COST_7B), abs=1e-12)
