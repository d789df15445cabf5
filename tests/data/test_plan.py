"""The plan: once per epoch, exact shares, exact continuation, full packs, small cursors."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections import Counter

import pytest
from plan_fakes import (
    ListedTable,
    constant_sizes,
    data_config,
    make_plan,
    picture_sizes,
    picture_table,
    text_sizes,
    text_table,
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
)
from vltrain.data.plan import Plan
from vltrain.data.recipe import Recipe
from vltrain.errors import CheckpointError, DataError

SMALL = PackingConfig(enabled=True, sequence_length=4096, window_samples=64)
UNPACKED = PackingConfig(enabled=False, sequence_length=4096, window_samples=64)
LANGUAGE_ONLY = MixtureConfig(language_share=1.0)


def take(plan: Plan, steps: int, *, cursor=None):
    return list(itertools.islice(plan.steps(cursor), steps))


def drawn(steps, *, source: int = 0) -> list[int]:
    return [ref.piece for s in steps for p in s.packs for ref in p.pieces if ref.source == source]


def through_json(cursor):
    return json.loads(json.dumps(cursor))


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


def language_ratio(steps) -> float:
    return sum(s.tokens["language"] for s in steps) / sum(sum(s.tokens.values()) for s in steps)


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
    cost = WorkCost(token=1.0, token_squared=0.001, image=100.0)
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
    tables = [text_table(samples=300), picture_table(samples=300)]
    step = take(make_plan(tables, seed=7, sequences=3, packing=SMALL), 1)[0]
    assert [[(r.source, r.piece) for r in p.pieces] for p in step.packs] == [
        [(0, 129), (0, 27), (0, 141), (0, 22), (0, 24)],
        [(1, 173), (1, 68), (1, 188), (1, 181), (0, 212)],
        [(0, 69), (0, 54), (0, 296)],
    ]


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


def test_a_unit_that_a_source_has_none_of_does_not_hang():
    def nothing_learned(samples):
        tokens, _, images = text_sizes()(samples)
        return tokens, tokens * 0, images

    plan = make_plan(
        [text_table(sizes=nothing_learned), text_table("other")],
        mixture=MixtureConfig(language_share=1.0, unit=RatioUnit.supervised_tokens),
        packing=SMALL,
    )
    assert len(take(plan, 20)) == 20


def test_nested_weights_hold_in_tokens():
    tables = [
        text_table("long", sizes=constant_sizes(1000)),
        text_table("short", sizes=constant_sizes(10)),
        text_table("chat", sizes=constant_sizes(300)),
    ]
    mixture = MixtureConfig(language_share=1.0, category_weights={"web": 3, "sft": 1})
    plan = make_plan(
        tables,
        mixture=mixture,
        categories={"long": "web", "short": "web", "chat": "sft"},
        weights={"long": 2, "short": 1},
        order=OrderConfig(lanes=2),
    )
    tokens = Counter()
    for step in take(plan, 300):
        for pack in step.packs:
            for ref in pack.pieces:
                tokens[ref.source] += ref.tokens
    total = sum(tokens.values())
    shares = [tokens[source] / total for source in range(3)]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.005)


def test_one_tiny_source_beside_one_of_ten_million_samples():
    tables = [text_table("tiny", samples=3), text_table("huge", samples=10_000_000)]
    plan = make_plan(tables, mixture=LANGUAGE_ONLY, weights={"tiny": 1, "huge": 999}, sequences=256)
    begin = time.process_time()
    steps = take(plan, 20)
    assert time.process_time() - begin < 20
    tiny = Counter(drawn(steps, source=0))
    tokens = sum(r.tokens for s in steps for p in s.packs for r in p.pieces if r.source == 0)
    assert set(tiny) == {0, 1, 2}
    assert tokens / sum(s.tokens["language"] for s in steps) == pytest.approx(0.001, abs=0.0005)


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


# --- packs ---------------------------------------------------------------------------------------


def fill(steps, *, capacity: int = 4096) -> float:
    tokens = sum(sum(s.tokens.values()) for s in steps)
    return tokens / (capacity * sum(len(s.packs) for s in steps))


def test_fill_of_the_published_mix_and_of_pictures_alone():
    tables = [text_table(samples=1_000_000), picture_table(samples=1_000_000)]
    order = OrderConfig(lanes=8)
    mixed = make_plan(tables, sequences=256, order=order)
    assert fill(take(mixed, 40)) >= 0.997
    pictures = make_plan(
        [picture_table(samples=1_000_000)],
        sequences=256,
        mixture=MixtureConfig(language_share=0.0),
        order=order,
    )
    assert fill(take(pictures, 40)) >= 0.94


def test_packs_hold_no_more_than_their_budgets():
    packing = PackingConfig(enabled=True, sequence_length=4096, max_images=4, window_samples=256)
    for step in take(make_plan([text_table(), picture_table()], packing=packing), 40):
        assert max(p.tokens for p in step.packs) <= 4096
        assert max(p.images for p in step.packs) <= 4


def test_without_packing_a_pack_is_one_piece():
    steps = take(make_plan([text_table(), picture_table()], packing=UNPACKED), 10)
    assert all(len(p.pieces) == 1 for s in steps for p in s.packs)


def test_lanes_take_turns_and_a_step_mixes_them():
    plan = make_plan(
        [text_table()], mixture=LANGUAGE_ONLY, packing=SMALL, order=OrderConfig(lanes=5)
    )
    assert [p.lane for p in take(plan, 1)[0].packs] == [0, 1, 2, 3, 4, 0, 1, 2]


@pytest.mark.parametrize(
    ("table", "packing", "words"),
    [
        (
            text_table("web", sizes=constant_sizes(5000)),
            SMALL,
            ["source 'web', piece", "5000 tokens", "holds 4096 tokens", "launch/prepare.py"],
        ),
        (
            text_table("web", sizes=constant_sizes(600, images=9)),
            SMALL,
            ["9 images", "8 images", "data.packing.max_images"],
        ),
        (
            text_table("web", sizes=constant_sizes(577, images=1)),
            PackingConfig(enabled=False, sequence_length=1),
            ["577 tokens", "holds 1 tokens"],
        ),
    ],
)
def test_a_piece_that_fits_no_sequence_is_refused(table, packing, words):
    with pytest.raises(DataError) as refused:
        take(make_plan([table], mixture=LANGUAGE_ONLY, packing=packing), 1)
    for word in words:
        assert word in str(refused.value)


def test_image_tokens_on_top_bound_the_text_alone():
    packing = PackingConfig(enabled=False, sequence_length=512, image_tokens_on_top=True)
    table = picture_table(samples=2000, sizes=constant_sizes(576 + 512, images=1))
    mixture = MixtureConfig(language_share=0.0)
    assert len(take(make_plan([table], mixture=mixture, packing=packing), 2)) == 2
    table.sizes = constant_sizes(576 + 513, images=1)
    with pytest.raises(DataError, match="513 text tokens"):
        take(make_plan([table], mixture=mixture, packing=packing), 1)


def test_a_table_that_counts_pieces_it_does_not_have_is_refused():
    class Lying(ListedTable):
        num_pieces = 7  # type: ignore[assignment]

    table = Lying(name="web", modality=Modality.language, shard_samples=[3], lengths=[[], [], []])
    with pytest.raises(DataError, match=r"'web' counts 7 pieces but none was found.*Prepare it"):
        take(make_plan([table], mixture=LANGUAGE_ONLY, packing=SMALL), 1)


# --- cost ----------------------------------------------------------------------------------------


def test_restore_anywhere_costs_the_open_windows_and_no_replay():
    def tables():
        return [text_table(samples=1_000_000), picture_table(samples=1_000_000)]

    plan = make_plan(tables(), order=OrderConfig(lanes=4), sequences=64)
    last = take(plan, 60)[-1]
    fresh = tables()
    resumed = make_plan(fresh, order=OrderConfig(lanes=4), sequences=64)
    begin = time.process_time()
    steps = resumed.steps(last.cursor_after)
    after = next(steps)
    seconds = time.process_time() - begin
    assert after == next(plan.steps(last.cursor_after))
    assert sum(table.reads for table in fresh) < 4 * 2 * 8  # lanes x sources x blocks of a window
    assert seconds < 2


def test_cursor_of_forty_sources_and_a_long_run_is_below_64_kb():
    tables = [text_table(f"t{i}", samples=1_000_000) for i in range(20)]
    tables += [picture_table(f"p{i}", samples=1_000_000) for i in range(20)]
    for grouping in (False, True):
        plan = make_plan(
            tables,
            sequences=128,
            mixture=MixtureConfig(language_share=0.7, grouping=grouping),
            packing=PackingConfig(enabled=True, sequence_length=4096, window_samples=1024),
        )
        cursor = take(plan, 3)[-1].cursor_after
        for group in cursor["groups"].values():
            shift = 10**12  # as after a run of 10^12 samples of each source
            group["positions"] = [p + shift for p in group["positions"]]
            group["taken_units"] = [u + shift * 4096 for u in group["taken_units"]]
        assert len(json.dumps(cursor)) <= 64 * 1024


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
    first = alone.groups["language"][0].stream.at(0)[0].piece
    assert (beside.groups["language"][1].stream.at(0)[0].piece == first).all()
