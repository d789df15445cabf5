"""Cards: counts are checked, limits shrink them."""

from __future__ import annotations

import json

import pytest

from data_recipes.card import Card, between, exactly
from data_recipes.demo import RECIPES
from data_recipes.split import Split
from vltrain.batch import RecordKind
from vltrain.errors import DataError


def card() -> Card:
    return Card(
        name="set",
        source="somewhere",
        version="1.0",
        licence="MIT",
        kind=RecordKind.text,
        synthetic=False,
        expected={Split.train: exactly(100), Split.held_out: between(5, 9)},
    )


def test_counts_inside_the_range_pass() -> None:
    card().check(Split.train, 100)
    card().check(Split.held_out, 5)
    card().check(Split.held_out, 9)


@pytest.mark.parametrize(
    ("split", "number", "words"),
    [
        (Split.train, 99, "set/train: 99 records written, but its card expects 100 "),
        (Split.held_out, 10, "set/held_out: 10 records written, but its card expects 5 to 9 "),
    ],
)
def test_other_counts_are_refused(split: Split, number: int, words: str) -> None:
    with pytest.raises(DataError, match=words) as error:
        card().check(split, number)
    assert "vltrain[demo]" in str(error.value)


def test_limit_shrinks_the_expectation() -> None:
    limited = card().limited(7)
    limited.check(Split.train, 7)
    limited.check(Split.held_out, 5)
    assert limited.to_json()["limit"] == 7
    assert card().limited(None) == card()
    with pytest.raises(DataError, match="limit=0 for set: expected at least 1"):
        card().limited(0)


def test_every_demo_card_is_complete_and_json() -> None:
    cards = [recipe.card() for recipe in RECIPES]
    assert len({c.name for c in cards}) == len(cards)
    for each in cards:
        assert each.source
        assert each.version
        assert each.licence
        assert Split.train in each.expected
        assert json.loads(json.dumps(each.to_json())) == each.to_json()
    assert {c.kind for c in cards} == set(RecordKind)
    assert {c.name for c in cards if c.synthetic} == {
        "ocr_lines",
        "synthetic_shapes",
        "glyphs",
        "tagged_text",
    }
    assert all("OpenMoji" in c.attribution for c in cards if "OpenMoji" in c.source)
