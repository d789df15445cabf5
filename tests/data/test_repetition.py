"""Expected epochs, against what the plan then does."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from plan_fakes import make_plan, picture_table, text_table

from vltrain.data.config import (
    MixtureConfig,
    OrderConfig,
    PackingConfig,
    RampConfig,
    RampKind,
    WhenSpent,
)
from vltrain.data.repetition import expected_epochs, repetition_warnings

TABLES = [text_table(samples=4000), text_table("few", samples=300), picture_table(samples=2000)]


@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_expected_epochs_agree_with_the_plan(grouping, packed):
    plan = make_plan(
        TABLES,
        sequences=16,
        mixture=MixtureConfig(
            language_share=0.6,
            grouping=grouping,
            ramp=RampConfig(kind=RampKind.linear, steps=100, start_share=1.0),
        ),
        packing=PackingConfig(enabled=packed, sequence_length=4096, window_samples=128),
        order=OrderConfig(lanes=4),
    )
    seen = Counter()
    for step in itertools.islice(plan.steps(), 300):
        seen.update(ref.source for pack in step.packs for ref in pack.pieces)
    expected = expected_epochs(plan, 300)
    for source, table in enumerate(TABLES):
        assert seen[source] / table.num_samples == pytest.approx(expected[table.name], rel=0.1)


def test_expected_epochs_of_a_source_that_leaves():
    plan = make_plan(
        TABLES,
        sequences=16,
        mixture=MixtureConfig(language_share=0.6),
        packing=PackingConfig(enabled=True, sequence_length=4096, window_samples=128),
        order=OrderConfig(lanes=4),
        max_epochs={"few": 3},
        when_spent=WhenSpent.leave,
    )
    seen = Counter()
    for step in itertools.islice(plan.steps(), 300):
        seen.update(ref.source for pack in step.packs for ref in pack.pieces)
    expected = expected_epochs(plan, 300)
    assert seen[1] == 900
    for source, table in enumerate(TABLES):
        assert seen[source] / table.num_samples == pytest.approx(expected[table.name], rel=0.1)


@pytest.mark.parametrize(
    ("when_spent", "words"),
    [
        (
            WhenSpent.leave,
            ["'few' will have been seen 3 times", "before step 200", "leave the mix"],
        ),
        (WhenSpent.end, ["seen 3 times", "at about step ", "of 200", "few.when_spent=leave"]),
    ],
)
def test_a_source_that_will_be_spent_is_named(when_spent, words):
    plan = make_plan(
        TABLES,
        mixture=MixtureConfig(language_share=0.6),
        max_epochs={"few": 3},
        when_spent=when_spent,
    )
    assert repetition_warnings(plan, 2) == []
    (line,) = repetition_warnings(plan, 200)
    for word in words:
        assert word in line


def test_a_ramp_in_tokens_is_expected_as_planned():
    ramp = RampConfig(kind=RampKind.linear, tokens=10_000_000, start_share=1.0)
    plan = make_plan(
        TABLES,
        sequences=16,
        mixture=MixtureConfig(language_share=0.2, ramp=ramp),
        packing=PackingConfig(enabled=True, sequence_length=4096, window_samples=128),
    )
    seen = Counter()
    for step in itertools.islice(plan.steps(), 200):
        seen.update(ref.source for pack in step.packs for ref in pack.pieces)
    pictures = expected_epochs(plan, 200)["pictures"]
    assert seen[2] / 2000 == pytest.approx(pictures, rel=0.1)


def test_warning_names_the_source_the_count_and_the_remedy():
    plan = make_plan(TABLES, mixture=MixtureConfig(language_share=0.6, repetition_warning=3.0))
    assert repetition_warnings(plan, 10) == []
    (line,) = repetition_warnings(plan, 200)
    assert line.startswith("source 'few' will be seen ")
    assert "in 200 steps (data.mixture.repetition_warning=3): give it less weight" in line
    assert "data.sources.few.max_epochs" in line


def test_a_source_that_is_never_drawn_has_no_epochs():
    plan = make_plan(TABLES, mixture=MixtureConfig(language_share=0.0))
    assert expected_epochs(plan, 100)["text"] == 0.0
    assert expected_epochs(plan, 0)["pictures"] == 0.0
