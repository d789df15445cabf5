"""The plan: once per epoch, exact shares, exact continuation, whatever the ranks."""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections import Counter

import pytest
from plan_fakes import (
    LANGUAGE_ONLY,
    SMALL,
    UNPACKED,
    ListedTable,
    constant_sizes,
    data_config,
    drawn,
    language_ratio,
    make_plan,
    picture_sizes,
    picture_table,
    take,
    text_sizes,
    text_table,
    through_json,
)

from vltrain.batch import Modality
from vltrain.data.assign import WorkCost, assign_all
from vltrain.data.config import (
    MixtureConfig,
    OrderConfig,
    PackingConfig,
    RampConfig,
    RampKind,
    RatioUnit,
    WhenSpent,
)
from vltrain.data.plan import Plan
from vltrain.data.recipe import Recipe
from vltrain.errors import CheckpointError

PINNED = [
    [(0, 19), (0, 262), (0, 43), (0, 286), (0, 261), (0, 99)],
    [(1, 94), (1, 116), (1, 114), (1, 284), (1, 138), (1, 224)],
]
"""Packs as (source, piece), see test_the_order_is_pinned."""


def worst_error_in_steps(steps) -> float:
    """Largest distance of language tokens from their target, in tokens of the largest step yet."""
    target = language = worst = largest = 0.0
    for step in steps:
        tokens = sum(step.tokens.values())
        largest = max(largest, tokens)
        target += step.language_share_target * tokens
        language += step.tokens["language"]
        worst = max(worst, abs(target - language) / largest)
    return worst


# --- every sample once ---------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [SMALL, UNPACKED])
@pytest.mark.parametrize("samples", [1, 5, 300, 3001])
def test_a_finite_source_gives_every_sample_once_per_epoch(packing, samples):
    plan = make_plan(
        [text_table(samples=samples)],
        mixture=LANGUAGE_ONLY,
        packing=packing,
        max_epochs={"text": 3},
    )
    steps = list(plan.steps())
    assert Counter(drawn(steps)) == dict.fromkeys(range(samples), 3)
    assert all(len(s.packs) == 8 for s in steps[:-1])
    assert 1 <= len(steps[-1].packs) <= 8


def test_part_of_an_epoch():
    plan = make_plan(
        [text_table(samples=1000)],
        mixture=LANGUAGE_ONLY,
        packing=SMALL,
        max_epochs={"text": 0.25},
    )
    pieces = drawn(plan.steps())
    assert len(pieces) == len(set(pieces)) == 250


def test_a_finite_source_ends_the_plan_for_all():
    tables = [text_table(samples=200), picture_table(samples=10_000)]
    for grouping in (False, True):
        plan = make_plan(
            tables,
            mixture=MixtureConfig(language_share=0.5, grouping=grouping),
            packing=SMALL,
            max_epochs={"text": 1},
        )
        steps = list(plan.steps())
        assert sorted(drawn(steps, source=0)) == list(range(200))
        assert len(set(drawn(steps, source=1))) == len(drawn(steps, source=1))
        assert language_ratio(steps) == pytest.approx(0.5, abs=0.1)


def test_a_source_that_leaves_gives_its_share_to_the_others(caplog):
    tables = [text_table("few", samples=100), text_table("many"), picture_table()]
    for grouping in (False, True):
        caplog.clear()
        plan = make_plan(
            tables,
            mixture=MixtureConfig(language_share=0.5, grouping=grouping),
            packing=SMALL,
            max_epochs={"few": 2},
            when_spent=WhenSpent.leave,
        )
        with caplog.at_level(logging.WARNING):
            steps = take(plan, 300)
        assert Counter(drawn(steps, source=0)) == dict.fromkeys(range(100), 2)
        assert drawn(steps[200:], source=0) == []
        assert language_ratio(steps) == pytest.approx(0.5, abs=0.02)
        (said,) = caplog.messages
        assert "source 'few' has been planned 2 times (data.sources.few.max_epochs)" in said
        again = take(plan, 10, cursor=through_json(steps[250].cursor_after))
        assert again == steps[251:261]


def test_the_plan_ends_when_every_source_of_a_modality_has_left():
    plan = make_plan(
        [text_table("a", samples=50), text_table("b", samples=80), picture_table()],
        mixture=MixtureConfig(language_share=0.5, grouping=True),
        packing=SMALL,
        max_epochs={"a": 1, "b": 1},
        when_spent=WhenSpent.leave,
    )
    steps = list(plan.steps())
    assert len(drawn(steps, source=0)) == 50
    assert len(drawn(steps, source=1)) == 80


def test_all_pieces_of_split_texts_come_and_empty_samples_are_passed_over():
    lengths = [[i + 1] * (i % 4) for i in range(50)]
    table = ListedTable(
        name="long", modality=Modality.language, shard_samples=[20, 30], lengths=lengths
    )
    plan = make_plan([table], mixture=LANGUAGE_ONLY, packing=SMALL, max_epochs={"long": 2})
    assert Counter(drawn(plan.steps())) == dict.fromkeys(range(table.num_pieces), 2)


def test_an_endless_source_repeats_evenly():
    plan = make_plan([text_table(samples=500)], mixture=LANGUAGE_ONLY, packing=SMALL)
    counts = Counter(drawn(take(plan, 200))).values()
    in_flight = 7 * 64  # lanes (500 // 64) x window
    assert len(counts) == 500
    assert max(counts) - min(counts) <= 1 + -(-in_flight // 500) + 1


def test_no_piece_twice_while_an_epoch_lasts():
    plan = make_plan([text_table(samples=100_000)], mixture=LANGUAGE_ONLY, sequences=32)
    pieces = drawn(take(plan, 100))
    assert len(pieces) == len(set(pieces))


# --- exact continuation --------------------------------------------------------------------------


@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("packing", [SMALL, UNPACKED])
def test_the_plan_goes_on_from_any_cursor_as_if_it_had_not_stopped(grouping, packing):
    def plan():
        return make_plan(
            [text_table(samples=2000), text_table("books", samples=77), picture_table(samples=900)],
            mixture=MixtureConfig(
                language_share=0.6,
                grouping=grouping,
                ramp=RampConfig(kind=RampKind.cosine, steps=40),
            ),
            packing=packing,
            seed=5,
            max_epochs={"pictures": 4},
        )

    through = list(plan().steps())
    assert len(through) > 60
    stops = [*random.Random(0).sample(range(len(through) - 1), 5), len(through) - 1]
    for stop in stops:
        cursor = through_json(through[stop].cursor_after)
        assert list(plan().steps(cursor)) == through[stop + 1 :]
    # Twice in a row, the second stop a few steps after the first.
    again = take(plan(), 3, cursor=through[20].cursor_after)[-1]
    assert again == through[23]
    assert take(plan(), 5, cursor=through_json(again.cursor_after)) == through[24:29]


def test_the_initial_cursor_is_step_0():
    plan = make_plan([text_table(), picture_table()], packing=SMALL)
    assert take(plan, 3, cursor=through_json(plan.initial_cursor())) == take(plan, 3)


def test_one_plan_can_be_walked_twice_at_once():
    plan = make_plan([text_table(), picture_table()], packing=SMALL)
    both = list(itertools.islice(zip(plan.steps(), plan.steps(), strict=True), 5))
    assert all(a == b for a, b in both)


def test_world_size_and_micro_batch_do_not_change_a_step():
    cost = WorkCost(token=1.0, token_squared=0.001, image_token=1.0)
    plan = make_plan([text_table(), picture_table()], packing=SMALL)
    for step in take(plan, 3):
        for world, micro in ((1, 1), (2, 3), (3, 2), (16, 1)):
            assigned = assign_all(step, world=world, micro=micro, cost=cost)
            packs = [p for mine in assigned for m in mine for p in m.packs]
            assert sorted(packs, key=lambda p: p.number) == list(step.packs)


def test_packs_and_steps_are_numbered_through():
    steps = take(make_plan([text_table(), picture_table()], packing=SMALL), 10)
    assert [s.step for s in steps] == list(range(10))
    assert [p.number for s in steps for p in s.packs] == list(range(80))


def test_seeds_differ_and_the_order_of_names_is_theirs():
    tables = [text_table(samples=5000)]
    one, two = (make_plan(tables, seed=s, mixture=LANGUAGE_ONLY, packing=SMALL) for s in (1, 2))
    assert drawn(take(one, 3)) != drawn(take(two, 3))


def test_the_order_is_pinned():
    """The first packs of a small plan, as recorded. Where they change, runs cannot resume:
    raise recipe.PLAN_VERSION along with these numbers."""

    def sizes(samples):
        return 100 + samples * 37 % 900, samples * 0 + 50, samples * 0

    tables = [text_table(samples=300, sizes=sizes), picture_table(samples=300, sizes=sizes)]
    step = take(make_plan(tables, seed=7, sequences=2, packing=SMALL), 1)[0]
    assert [[(r.source, r.piece) for r in p.pieces] for p in step.packs] == PINNED


@pytest.mark.parametrize("change", ["recipe", "seed", "schema"])
def test_a_cursor_of_another_plan_is_refused(change):
    plan = make_plan([text_table()], mixture=LANGUAGE_ONLY, packing=SMALL)
    cursor = plan.initial_cursor() | {change: "another"}
    with pytest.raises(CheckpointError, match=rf"{change}='another'.*init_from"):
        next(plan.steps(cursor))


# --- shares --------------------------------------------------------------------------------------


@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize(("text", "pictures"), [(100, 1000), (1000, 100)])
def test_token_ratio_with_lengths_ten_times_apart(grouping, text, pictures):
    packing = PackingConfig(enabled=True, sequence_length=2048, window_samples=256)
    plan = make_plan(
        [
            text_table(sizes=text_sizes(median=text, sigma=0.3, longest=2048)),
            picture_table(sizes=text_sizes(median=pictures, sigma=0.3, longest=2048)),
        ],
        mixture=MixtureConfig(language_share=0.7, grouping=grouping),
        packing=packing,
        order=OrderConfig(lanes=8),
    )
    steps = take(plan, 1000)
    assert language_ratio(steps) == pytest.approx(0.7, abs=0.001)
    assert worst_error_in_steps(steps) < 1


@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("tokens", [(50, 500), (500, 50)])
def test_token_ratio_where_nothing_is_packed(grouping, tokens):
    plan = make_plan(
        [
            text_table(sizes=constant_sizes(tokens[0])),
            picture_table(sizes=constant_sizes(tokens[1], images=1)),
        ],
        mixture=MixtureConfig(language_share=0.479, grouping=grouping),
        packing=UNPACKED,
        order=OrderConfig(lanes=8),
    )
    steps = take(plan, 1000)
    assert language_ratio(steps) == pytest.approx(0.479, abs=0.001)
    assert worst_error_in_steps(steps) < 1


@pytest.mark.parametrize("kind", [RampKind.linear, RampKind.cosine])
@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("start", [1.0, 0.2])
@pytest.mark.parametrize("sequences", [32, 256])
def test_the_ramp_is_followed_within_a_step_and_not_paid_back(kind, grouping, start, sequences):
    plan = make_plan(
        [text_table(), picture_table()],
        sequences=sequences,
        mixture=MixtureConfig(
            language_share=0.7,
            grouping=grouping,
            ramp=RampConfig(kind=kind, steps=60, start_share=start),
        ),
        packing=PackingConfig(enabled=True, sequence_length=4096, window_samples=256),
        order=OrderConfig(lanes=8),
    )
    steps = take(plan, 120 if sequences == 32 else 70)
    assert worst_error_in_steps(steps) < 1
    if sequences == 32:
        assert language_ratio(steps[80:]) == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("grouping", [False, True])
def test_a_ramp_in_tokens_ends_where_so_many_are_planned(grouping):
    tables = [text_table(), picture_table()]
    ramp = RampConfig(kind=RampKind.linear, tokens=2_000_000, start_share=1.0)
    plan = make_plan(
        tables,
        mixture=MixtureConfig(language_share=0.5, grouping=grouping, ramp=ramp),
        packing=SMALL,
    )
    steps = take(plan, 90)
    before = 0
    for step in steps:
        share = 1.0 - 0.5 * min(1.0, before / 2_000_000)
        assert step.language_share_target == pytest.approx(share, abs=1e-6)
        before += sum(step.tokens.values())
    assert before > 2_500_000
    assert worst_error_in_steps(steps) < 1
    resumed = take(plan, 5, cursor=through_json(steps[30].cursor_after))
    assert resumed == steps[31:36]


def test_a_ramp_from_one_begins_with_language_alone():
    plan = make_plan(
        [text_table(), picture_table()],
        mixture=MixtureConfig(
            language_share=0.7,
            grouping=True,
            ramp=RampConfig(kind=RampKind.linear, steps=1000, start_share=1.0),
        ),
        packing=SMALL,
    )
    assert {s.modality for s in take(plan, 30)} == {Modality.language}


@pytest.mark.parametrize("unit", list(RatioUnit))
@pytest.mark.parametrize("grouping", [False, True])
def test_the_ratio_holds_in_every_unit(unit, grouping):
    def half_learned(samples):
        tokens, _, images = picture_sizes()(samples)
        return tokens, tokens // 8, images

    plan = make_plan(
        [text_table(), picture_table(sizes=half_learned)],
        mixture=MixtureConfig(language_share=0.25, unit=unit, grouping=grouping),
        packing=SMALL,
        order=OrderConfig(lanes=4),
    )
    steps = take(plan, 400)
    if unit is RatioUnit.samples:
        language = len(drawn(steps, source=0))
        share = language / (language + len(drawn(steps, source=1)))
    else:
        counts = [s.tokens if unit is RatioUnit.tokens else s.supervised for s in steps]
        share = sum(c["language"] for c in counts) / sum(sum(c.values()) for c in counts)
    assert share == pytest.approx(0.25, abs=0.005)


def test_grouped_steps_are_all_one_modality_and_ungrouped_steps_are_mixed():
    tables = [text_table(), picture_table()]
    grouped = make_plan(
        tables, mixture=MixtureConfig(language_share=0.5, grouping=True), packing=SMALL
    )
    for step in take(grouped, 20):
        assert {p.modality for p in step.packs} == {step.modality}
        other = "multimodal" if step.modality is Modality.language else "language"
        assert step.tokens[other] == 0
    mixed = take(make_plan(tables, mixture=MixtureConfig(language_share=0.5), packing=SMALL), 5)
    assert {s.modality for s in mixed} == {None}
    assert all(min(s.tokens.values()) > 0 for s in mixed)


def test_planning_speed_does_not_fall_behind():
    # The goal is 100,000 samples/s on a free core (benchmarks/); this guards against collapse.
    plan = make_plan(
        [text_table(samples=1_000_000), picture_table(samples=1_000_000)], sequences=512
    )
    steps = plan.steps()
    for _ in range(20):
        next(steps)
    begin = time.process_time()
    pieces = sum(len(p.pieces) for _ in range(20) for p in next(steps).packs)
    assert pieces / (time.process_time() - begin) > 10_000


def test_names_and_not_places_seed_the_streams():
    """A source added to the mix leaves the other sources' own orders as they were."""
    alone = Plan(
        Recipe([text_table("b")], config=data_config([text_table("b")], mixture=LANGUAGE_ONLY)),
        seed=0,
    )
    tables = [text_table("a"), text_table("b")]
    beside = Plan(Recipe(tables, config=data_config(tables, mixture=LANGUAGE_ONLY)), seed=0)
    first = alone.members[0].stream.at(0)[0].piece
    assert (beside.members[1].stream.at(0)[0].piece == first).all()


def test_a_ramp_of_tokens_goes_on_under_another_recipe() -> None:
    ramp = RampConfig(kind=RampKind.linear, tokens=100_000, start_share=1.0)
    mixture = MixtureConfig(language_share=0.0, ramp=ramp)
    plan = make_plan([text_table(), picture_table()], mixture=mixture)
    cursor = plan.cursor_at(step=5, packs=40, tokens=75_000)
    step = take(plan, 1, cursor=through_json(cursor))[0]
    assert (step.step, step.packs[0].number) == (5, 40)
    assert step.language_share_target == 0.25
