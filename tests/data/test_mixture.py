"""Nested weights, the ramp, the exact account; and every message about them."""

from __future__ import annotations

import math

import pytest

from vltrain.batch import Modality, RecordKind
from vltrain.data.config import MixtureConfig, RampConfig, RampKind, SourceConfig
from vltrain.data.mixture import (
    WHOLE,
    Balance,
    language_share,
    modalities_in_use,
    source_weights,
)
from vltrain.errors import ConfigError


def source(modality: str, *, category: str = "default", weight: float = 1.0) -> SourceConfig:
    return SourceConfig(
        path="x",
        kind=RecordKind.text,
        modality=Modality(modality),
        category=category,
        weight=weight,
    )


MIX = {
    "caps": source("multimodal", category="caption", weight=3),
    "alt": source("multimodal", category="caption", weight=1),
    "charts": source("multimodal", category="chart"),
    "web": source("language"),
}


def test_weights_nest_source_in_category_in_modality():
    mixture = MixtureConfig(language_share=0.7, category_weights={"caption": 4, "chart": 1})
    weights = source_weights(MIX, mixture)
    assert weights[Modality.language] == {"web": 1.0}
    assert weights[Modality.multimodal] == pytest.approx({"caps": 0.6, "alt": 0.2, "charts": 0.2})


def test_a_category_that_is_not_named_weighs_one():
    weights = source_weights(MIX, MixtureConfig(language_share=0.7))
    assert weights[Modality.multimodal] == pytest.approx(
        {"caps": 0.375, "alt": 0.125, "charts": 0.5}
    )


def test_weight_zero_leaves_a_source_or_a_category_out():
    mixture = MixtureConfig(language_share=0.7, category_weights={"chart": 0})
    mix = MIX | {"alt": source("multimodal", category="caption", weight=0)}
    assert source_weights(mix, mixture)[Modality.multimodal] == {"caps": 1.0}


@pytest.mark.parametrize(
    ("mixture", "words"),
    [
        (
            MixtureConfig(language_share=0.5, category_weights={"capton": 1}),
            ["'capton'", "caption, chart, default"],
        ),
        (
            MixtureConfig(language_share=0.5, category_weights={"caption": 0, "chart": 0}),
            ["every multimodal category weighs 0", "caption, chart", "positive"],
        ),
        (
            MixtureConfig(language_share=0.5, category_weights={"chart": -1}),
            ["data.mixture.category_weights.chart=-1", "0 or more"],
        ),
        (MixtureConfig(language_share=1.5), ["data.mixture.language_share=1.5", "between 0 and 1"]),
        (
            MixtureConfig(ramp=RampConfig(start_share=-0.1)),
            ["data.mixture.ramp.start_share=-0.1", "between 0 and 1"],
        ),
        (MixtureConfig(ramp=RampConfig(steps=-1)), ["data.mixture.ramp.steps=-1"]),
        (MixtureConfig(ramp=RampConfig(tokens=-1)), ["data.mixture.ramp.tokens=-1"]),
        (
            MixtureConfig(ramp=RampConfig(steps=10, tokens=20)),
            ["ramp.steps=10", "ramp.tokens=20", "Set one of them to 0"],
        ),
    ],
)
def test_what_the_mixture_refuses(mixture, words):
    with pytest.raises(ConfigError) as refused:
        source_weights(MIX, mixture)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("sources", "share", "words"),
    [
        ({}, 0.5, ["data.sources is empty"]),
        ({"web": source("language")}, 0.5, ["no source", "modality=multimodal", "1.0"]),
        ({"caps": source("multimodal")}, 0.5, ["modality=language", "language_share to 0.0"]),
        ({"web": source("language", weight=math.nan)}, 1.0, ["data.sources.web.weight=nan"]),
        (
            {"web": source("language", weight=0)},
            1.0,
            ["language category 'default' has weight 0 (web)", "category_weights.default=0"],
        ),
    ],
)
def test_what_the_sources_are_refused_for(sources, share, words):
    with pytest.raises(ConfigError) as refused:
        source_weights(sources, MixtureConfig(language_share=share))
    for word in words:
        assert word in str(refused.value)


def test_modalities_in_use_counts_the_ramp():
    only_pictures = MixtureConfig(language_share=0.0)
    assert modalities_in_use(only_pictures) == (Modality.multimodal,)
    only_pictures.ramp = RampConfig(kind=RampKind.linear, steps=10, start_share=1.0)
    assert modalities_in_use(only_pictures) == (Modality.language, Modality.multimodal)
    only_pictures.ramp = RampConfig(kind=RampKind.linear, tokens=10, start_share=1.0)
    assert modalities_in_use(only_pictures) == (Modality.language, Modality.multimodal)
    assert modalities_in_use(MixtureConfig(language_share=1.0)) == (Modality.language,)


def test_ramp_leads_from_its_start_to_the_target():
    def shares(kind):
        mixture = MixtureConfig(
            language_share=0.7, ramp=RampConfig(kind=kind, steps=100, start_share=1.0)
        )
        return [
            language_share(step, tokens=0, mixture=mixture) / WHOLE
            for step in (0, 25, 50, 100, 5000)
        ]

    assert shares(RampKind.none) == [0.7] * 5
    assert shares(RampKind.linear) == pytest.approx([1.0, 0.925, 0.85, 0.7, 0.7])
    quarter = 1.0 - 0.3 * (1 - math.cos(math.pi / 4)) / 2
    assert shares(RampKind.cosine) == pytest.approx([1.0, quarter, 0.85, 0.7, 0.7])


def test_a_ramp_in_tokens_goes_by_what_is_planned():
    ramp = RampConfig(kind=RampKind.linear, tokens=1000, start_share=1.0)
    mixture = MixtureConfig(language_share=0.5, ramp=ramp)
    shares = [language_share(9, tokens=n, mixture=mixture) / WHOLE for n in (0, 500, 1000, 9999)]
    assert shares == pytest.approx([1.0, 0.75, 0.5, 0.5])


def test_balance_owes_each_unit_the_share_of_its_moment():
    balance = Balance()
    balance.count(WHOLE, units=100, language_units=100)
    assert balance.language_is_owed == 0
    balance.count(WHOLE // 2, units=100, language_units=0)
    assert balance.language_is_owed == 50 * WHOLE
    assert balance.language_comes_next(0)
    balance.count(WHOLE // 2, units=200, language_units=200)
    assert balance.language_is_owed == -50 * WHOLE
    assert not balance.language_comes_next(WHOLE)


def test_an_even_account_goes_by_the_share():
    assert Balance().language_comes_next(WHOLE)
    assert Balance().language_comes_next(WHOLE // 2)
    assert not Balance().language_comes_next(0)
