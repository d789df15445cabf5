"""How far apart neighbours of a shard land: by hand, and on the plan."""

from __future__ import annotations

import pytest
from plan_fakes import LANGUAGE_ONLY, constant_sizes, make_plan, take, text_table

from vltrain.batch import Modality, PackPlan, PieceRef, StepPlan
from vltrain.data.config import OrderConfig, PackingConfig
from vltrain.data.spread import Spread, spread_of_neighbours


def step_of(number: int, packs: list[tuple[int, list[int]]]) -> StepPlan:
    def ref(piece: int) -> PieceRef:
        return PieceRef(source=0, piece=piece, tokens=1, supervised=1, image_tokens=0, images=0)

    return StepPlan(
        step=number,
        modality=None,
        packs=tuple(
            PackPlan(number=n, modality=Modality.language, pieces=tuple(map(ref, pieces)))
            for n, pieces in packs
        ),
        tokens={},
        supervised={},
        language_share_target=1.0,
        cursor_after={},
    )


def test_by_hand():
    # 10 and 11 lie 3 packs apart in two steps; 11 and 12 in one pack; 13 has no neighbour seen.
    steps = [step_of(0, [(0, [10]), (1, [])]), step_of(1, [(2, [14]), (3, [12, 11])])]
    assert spread_of_neighbours(steps, source=0, places_apart=1) == Spread(
        pairs=2, median_packs=1.5, tenth_packs=pytest.approx(0.3), same_step=0.5
    )
    assert spread_of_neighbours(steps, source=0, places_apart=4).pairs == 1
    assert spread_of_neighbours(steps, source=1, places_apart=1) == Spread(
        pairs=0, median_packs=0.0, tenth_packs=0.0, same_step=0.0
    )


def test_neighbours_are_spread_over_a_stretch_and_blocks_over_the_epoch():
    """16 lanes of 64 samples, 8 to a pack: neighbours are random among the 128 packs of a stretch
    (half of them within 0.29 of it); samples of two blocks, among all 1,250 packs of the epoch."""
    plan = make_plan(
        [text_table(samples=10_000, sizes=constant_sizes(512))],
        sequences=10,
        mixture=LANGUAGE_ONLY,
        packing=PackingConfig(enabled=True, sequence_length=4096, window_samples=128),
        order=OrderConfig(lanes=16, block_samples=64),
    )
    steps = take(plan, 125)
    near = spread_of_neighbours(steps, source=0, places_apart=1)
    far = spread_of_neighbours(steps, source=0, places_apart=64)
    assert near.pairs > 9_000
    assert near.median_packs == pytest.approx(0.29 * 128, rel=0.15)
    assert near.same_step < 0.2
    assert far.median_packs > 0.25 * 1250
    assert far.same_step < 0.03
