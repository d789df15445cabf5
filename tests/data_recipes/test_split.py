"""The sides are fixed by the key alone."""

from __future__ import annotations

import pytest

from data_recipes.split import Split, choose, fraction, held_out_exactly, split_of


def test_fraction_is_fixed_for_ever() -> None:
    assert fraction("1F35F") == pytest.approx(0.3308, abs=1e-4)
    assert fraction("1F35F", purpose="language") != fraction("1F35F")


def test_share_is_about_what_was_asked() -> None:
    sides = [split_of(f"key-{i}", held_out_share=0.1) for i in range(5000)]
    assert 0.08 < sides.count(Split.held_out) / 5000 < 0.12


def test_a_larger_share_only_adds_keys() -> None:
    keys = [f"key-{i}" for i in range(300)]
    small = {k for k in keys if split_of(k, held_out_share=0.1) is Split.held_out}
    large = {k for k in keys if split_of(k, held_out_share=0.2) is Split.held_out}
    assert small < large


def test_held_out_exactly_does_not_depend_on_order() -> None:
    keys = [f"key-{i}" for i in range(100)]
    chosen = held_out_exactly(keys, number=7)
    assert len(chosen) == 7
    assert chosen == held_out_exactly(reversed(keys), number=7)
    with pytest.raises(ValueError, match="101 keys to hold out of only 100"):
        held_out_exactly(keys, number=101)


def test_choose_uses_every_option() -> None:
    seen = {choose(f"key-{i}", ("a", "b", "c"), purpose="phrase") for i in range(100)}
    assert seen == {"a", "b", "c"}
