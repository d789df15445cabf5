"""Picture-to-caption choice: right only where the picture decides."""

from __future__ import annotations

import pytest

from vltrain.errors import DataError
from vltrain.evaluate.choices import picture_choice
from vltrain.evaluate.results import Accuracy

CAPTIONS = [("1", "a red thing", "red"), ("2", "a green thing", "green"), ("3", "so blue", "blue")]


def choose(subject, encoder, samples, **changes):
    settings = {"ways": 3, "seed": 0, "blank_control": True, **changes}
    return picture_choice(subject, samples=samples, encoder=encoder, **settings)


def test_sight_decides_and_blank_fails(rule_subject, rule_encoder, make_caption):
    samples = [make_caption(key, text, color=color) for key, text, color in CAPTIONS]
    found = choose(rule_subject, rule_encoder, samples)
    assert found == Accuracy(asked=3, right=3, right_blank=0, chance=1 / 3)


def test_a_tie_is_no_success(rule_subject, rule_encoder, make_caption):
    samples = [make_caption(key, text, color="red") for key, text, _ in CAPTIONS]
    found = choose(rule_subject, rule_encoder, samples, blank_control=False)
    # Only the first names the colour that all three show.
    assert (found.asked, found.right, found.right_blank) == (3, 1, None)


def test_damaged_pictures_are_left_out(rule_subject, rule_encoder, make_caption, caplog):
    samples = [make_caption(key, text, color=color) for key, text, color in CAPTIONS]
    found = choose(rule_subject, rule_encoder, [*samples, make_caption("4", "gone", color=None)])
    assert found.asked == 3
    assert "colors:a.tar:4 left out" in caplog.text


def test_too_few_captions_is_an_error(rule_subject, rule_encoder, make_caption):
    samples = [make_caption(str(n), "the same", color="red") for n in range(5)]
    with pytest.raises(DataError, match="needs 3 distinct captions, found 1 in 5 records"):
        choose(rule_subject, rule_encoder, samples)
