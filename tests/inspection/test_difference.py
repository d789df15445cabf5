"""What differs between two recipes, and from which step on their packs do."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from tiny_mix import Opened, caption_source, data_config, open_mix, text_source

from vltrain.data.config import BatchConfig, MixtureConfig, PackingConfig, RampConfig, RampKind
from vltrain.inspection.difference import (
    ABSENT,
    PlanSide,
    first_planned_difference,
    recipe_values,
    value_differences,
)


def side(opened: Opened) -> PlanSide:
    return PlanSide(plan=opened.plan, locate=opened.reader.origin)


def test_values() -> None:
    left = {"a": {"b": 1, "c": [1, 2]}, "gone": {"x": 1, "y": None}, "same": {"n": None}, "m": {}}
    right = {"a": {"b": 2, "c": [1, 2]}, "new": "v", "same": {"n": None}, "m": {"k": 3}}
    found = [(d.key, d.left, d.right) for d in value_differences(left, right)]
    assert found == [
        ("a.b", "1", "2"),
        ("gone", "{x: 1}", ABSENT),
        ("m.k", ABSENT, "3"),
        ("new", ABSENT, "v"),
    ]
    assert value_differences(left, left) == []


def test_a_long_value_is_cut() -> None:
    (difference,) = value_differences({"a": "x" * 999}, {"a": "y"})
    assert difference.left == "x" * 157 + "..."


def test_the_same_recipe(mix: Callable[..., Opened]) -> None:
    opened = mix()
    assert first_planned_difference(side(opened), side(mix()), steps=20) is None


def test_another_seed_differs_from_the_first_step(mix: Callable[..., Opened]) -> None:
    found = first_planned_difference(side(mix(seed=1)), side(mix(seed=2)), steps=20)
    assert found is not None
    assert found.step == 1
    assert "pack 0 there: " in found.words
    assert "pack 0 here: " in found.words


def test_a_ramp_of_another_length_differs_later(mix: Callable[..., Opened]) -> None:
    def ramped(steps: int) -> Opened:
        ramp = RampConfig(kind=RampKind.linear, steps=steps)
        mixture = MixtureConfig(language_share=0.0, grouping=True, ramp=ramp)
        return mix(mixture=mixture)

    short, long = ramped(8), ramped(400)
    runs = [[s.packs for s in islice(o.plan.steps(), 30)] for o in (short, long)]
    expected = next(n for n in range(30) if runs[0][n] != runs[1][n]) + 1
    assert expected > 1
    found = first_planned_difference(side(short), side(long), steps=30)
    assert found is not None
    assert found.step == expected
    assert "4 multimodal packs" in found.words
    assert "4 language packs" in found.words
    assert "0 pieces in common" in found.words
    assert first_planned_difference(side(short), side(long), steps=expected - 1) is None


def test_a_step_of_another_size(mix: Callable[..., Opened]) -> None:
    found = first_planned_difference(
        side(mix()), side(mix(batch=BatchConfig(sequences=5))), steps=3
    )
    assert found is not None
    assert found.step == 1
    assert "4 mixed packs" in found.words
    assert "5 mixed packs" in found.words


def test_one_side_ends(tmp_path: Path) -> None:
    texts = {f"k{i}": "x" * 60 for i in range(8)}  # 2 steps of 4 packs, one window an epoch
    packing = PackingConfig(enabled=True, sequence_length=64, window_samples=8)
    mixture = MixtureConfig(language_share=1.0)

    def opened(epochs: float | None) -> Opened:
        source = text_source(tmp_path / "t", texts, max_epochs=epochs)
        return open_mix(data_config({"t": source}, mixture=mixture, packing=packing))

    found = first_planned_difference(side(opened(1)), side(opened(None)), steps=9)
    assert found is not None
    assert found.step == 3
    assert found.words == "no step 3 there: a source with max_epochs is spent"


def test_the_same_data_elsewhere_is_no_difference(mix: Callable[..., Opened], tmp_path) -> None:
    opened = mix()
    shutil.copytree(tmp_path / "words", tmp_path / "moved")
    config = copy.deepcopy(opened.config)
    config.sources["words"].path = str(tmp_path / "moved")
    assert first_planned_difference(side(opened), side(open_mix(config)), steps=5) is None


def test_other_data_of_the_same_lengths_is_told_by_its_keys(tmp_path: Path) -> None:
    mixture = MixtureConfig(language_share=1.0)
    plans = []
    for folder, letter in (("a", "k"), ("b", "q")):
        texts = {f"{letter}{i}": f"text {i}" for i in range(9)}
        source = text_source(tmp_path / folder, texts)
        plans.append(open_mix(data_config({"t": source}, mixture=mixture)))
    found = first_planned_difference(side(plans[0]), side(plans[1]), steps=2)
    assert found is not None
    assert found.step == 1
    assert "t:a.tar:k" in found.words
    assert "t:a.tar:q" in found.words


def test_recipe_values_name_sources(tmp_path: Path, mix: Callable[..., Opened]) -> None:
    opened = mix()
    values = recipe_values(opened.plan.recipe.facts)
    assert list(values["sources"]) == ["words", "pictures"]
    assert values["sources"]["pictures"]["place"] == 1
    other = data_config(
        {
            "pictures": caption_source(tmp_path / "pictures", {"p": "other"}),
            "words": opened.config.sources["words"],
        }
    )
    keys = [
        d.key for d in value_differences(values, recipe_values(open_mix(other).plan.recipe.facts))
    ]
    assert keys == ["sources.words.place", "sources.pictures.place", "sources.pictures.table"]
