"""Packing groups: what a restore and a cursor cost, and text that tops up multimodal packs."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from plan_fakes import (
    drawn,
    fill,
    language_ratio,
    make_plan,
    picture_table,
    take,
    text_table,
    through_json,
)

from vltrain.batch import Modality
from vltrain.data.config import MixtureConfig, OrderConfig, PackingConfig

GROUPED = MixtureConfig(language_share=0.7, grouping=True)


def topped_up(texts: float = 0.5, *, window_samples: int = 1024) -> PackingConfig:
    return PackingConfig(
        enabled=True,
        sequence_length=4096,
        window_samples=window_samples,
        top_up_texts_per_sample=texts,
    )


@pytest.mark.parametrize("grouping", [False, True])
def test_restore_anywhere_reads_the_stretches_of_the_open_windows_and_nothing_else(grouping):
    def tables():
        return [text_table(samples=1_000_000), picture_table(samples=1_000_000)]

    settings = {
        "order": OrderConfig(lanes=4),
        "sequences": 16,
        "mixture": MixtureConfig(language_share=0.7, grouping=grouping),
    }
    plan = make_plan(tables(), **settings)
    cursor = through_json(take(plan, 400)[-1].cursor_after)
    fresh = tables()
    after = next(make_plan(fresh, **settings).steps(cursor))
    assert after == next(plan.steps(cursor))
    # Of each source, the stretch (4 blocks) that its open window starts in and the one it ends in.
    assert sum(table.reads for table in fresh) <= 2 * 2 * 4


@pytest.mark.parametrize("packing", [topped_up(0.0), topped_up(0.5)])
def test_cursor_of_forty_sources_and_a_long_run_is_below_64_kb(packing):
    tables = [text_table(f"t{i}", samples=1_000_000) for i in range(20)]
    tables += [picture_table(f"p{i}", samples=1_000_000) for i in range(20)]
    plan = make_plan(tables, sequences=512, mixture=GROUPED, packing=packing)
    largest = 0
    for step in take(plan, 8):
        cursor = step.cursor_after
        shift = 10**12  # as after a run of 10^12 samples of each source
        cursor["positions"] = [p + shift for p in cursor["positions"]]
        cursor["taken_units"] = [u + shift * 4096 for u in cursor["taken_units"]]
        for group in cursor["groups"].values():
            for opened in group["open"]:
                opened["runs"] = [[i, start + shift, n] for i, start, n in opened["runs"]]
        largest = max(largest, len(json.dumps(cursor)))
    assert largest <= 64 * 1024


# --- text top-up ---------------------------------------------------------------------------------


def test_topped_up_packs_are_full_and_the_ratio_counts_their_text_as_language():
    tables = [text_table(samples=1_000_000), picture_table(samples=1_000_000)]

    def planned(packing):
        return take(make_plan(tables, sequences=256, mixture=GROUPED, packing=packing), 30)

    plain, steps = planned(topped_up(0.0)), planned(topped_up(0.5))
    multimodal = [s for s in steps if s.modality is Modality.multimodal]
    language = [s for s in steps if s.modality is Modality.language]
    assert fill([s for s in plain if s.modality is Modality.multimodal]) < 0.95
    assert fill(multimodal) >= 0.995
    assert fill(language) >= 0.99
    # Every pack of a multimodal step has an image; its text is language in the planned counts.
    assert all(p.modality is Modality.multimodal for s in multimodal for p in s.packs)
    assert all(p.images > 0 for s in multimodal for p in s.packs)
    assert all(s.tokens["multimodal"] == 0 for s in language)
    text = sum(s.tokens["language"] for s in multimodal)
    assert 0.04 < text / sum(sum(s.tokens.values()) for s in multimodal) < 0.08
    for step in multimodal:
        by_source = Counter()
        for pack in step.packs:
            for ref in pack.pieces:
                by_source[ref.source] += ref.tokens
        assert step.tokens == {"language": by_source[0], "multimodal": by_source[1]}
    assert language_ratio(steps) == pytest.approx(0.7, abs=0.04)


def test_the_account_stays_within_a_step_with_text_in_multimodal_steps():
    tables = [text_table(samples=1_000_000), picture_table(samples=1_000_000)]
    packing = topped_up(window_samples=128)
    steps = take(make_plan(tables, sequences=32, mixture=GROUPED, packing=packing), 500)
    assert language_ratio(steps) == pytest.approx(0.7, abs=0.002)
    target = language = 0.0
    for step in steps:
        tokens = sum(step.tokens.values())
        target += 0.7 * tokens
        language += step.tokens["language"]
        assert abs(target - language) <= 32 * 4096


def test_every_text_comes_once_although_two_groups_draw_it():
    tables = [text_table(samples=3000), picture_table(samples=100_000)]
    plan = make_plan(
        tables,
        sequences=8,
        mixture=GROUPED,
        packing=topped_up(window_samples=64),
        max_epochs={"text": 1},
    )
    steps = list(plan.steps())
    assert Counter(drawn(steps)) == dict.fromkeys(range(3000), 1)
    pictures = drawn(steps, source=1)
    assert len(pictures) == len(set(pictures)) > 100


def test_a_topped_up_plan_goes_on_from_any_cursor():
    def plan():
        tables = [text_table(samples=5000), picture_table(samples=4000)]
        return make_plan(
            tables, sequences=48, mixture=GROUPED, packing=topped_up(window_samples=64), seed=3
        )

    through = take(plan(), 30)
    waiting = [len(s.cursor_after["groups"]["multimodal"]["open"]) for s in through]
    assert max(waiting) > 2  # windows whose left-over texts wait are part of the cursor
    for stop in range(0, 29, 4):
        cursor = through_json(through[stop].cursor_after)
        assert take(plan(), 29 - stop, cursor=cursor) == through[stop + 1 :]


def test_texts_that_language_steps_cannot_take_are_not_drawn():
    """One part of language in ten: the multimodal windows would draw more text than that."""
    tables = [text_table(samples=1_000_000), picture_table(samples=1_000_000)]
    plan = make_plan(
        tables,
        sequences=16,
        mixture=MixtureConfig(language_share=0.1, grouping=True),
        packing=topped_up(window_samples=64),
    )
    steps = take(plan, 600)
    assert language_ratio(steps) == pytest.approx(0.1, abs=0.005)
    waiting = max(len(s.cursor_after["groups"]["multimodal"]["open"]) for s in steps)
    assert 2 < waiting <= 32
    assert 0.92 < fill([s for s in steps if s.modality is Modality.multimodal]) < 0.995
