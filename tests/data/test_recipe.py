"""The recipe: what its digest names and what not, and what it refuses."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import replace

import pytest
from plan_fakes import ListedTable, data_config, picture_table, text_table

from vltrain.batch import Learn, Modality
from vltrain.data.config import (
    DataConfig,
    DecodeMode,
    MixtureConfig,
    PackingConfig,
    RampKind,
    RatioUnit,
)
from vltrain.data.recipe import Recipe
from vltrain.errors import ConfigError, DataError

TABLES = [text_table(samples=100), picture_table(samples=100)]


def digest(config: DataConfig, tables=TABLES) -> str:
    return Recipe(tables, config=config).digest


def changed(change) -> DataConfig:
    config = copy.deepcopy(data_config(TABLES, sequences=8))
    change(config)
    return config


def put(path: str, value):
    def change(config):
        *parents, leaf = path.split(".")
        for parent in parents:
            config = config[parent] if isinstance(config, dict) else getattr(config, parent)
        if isinstance(config, dict):
            config[leaf] = value
        else:
            assert hasattr(config, leaf)
            setattr(config, leaf, value)

    return change


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("sources.text.weight", 2.0),
        ("sources.text.category", "web"),
        ("sources.text.max_epochs", 3.0),
        ("mixture.unit", RatioUnit.samples),
        ("mixture.language_share", 0.6),
        ("mixture.ramp.kind", RampKind.linear),
        ("mixture.ramp.steps", 10),
        ("mixture.ramp.start_share", 0.9),
        ("mixture.grouping", True),
        ("mixture.category_weights.default", 2.0),
        ("packing.enabled", False),
        ("packing.sequence_length", 2048),
        ("packing.window_samples", 512),
        ("packing.max_images", 4),
        ("order.block_samples", 128),
        ("order.lanes", 32),
        ("batch.sequences", 16),
    ],
)
def test_what_decides_the_order_is_in_the_digest(path, value):
    assert digest(changed(put(path, value))) != digest(changed(lambda config: None))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("batch.micro", 4),
        ("loader.workers", 3),
        ("loader.prefetch_steps", 5),
        ("faults.budget", 0.5),
        ("faults.grace", 1),
        ("decode", DecodeMode.scaled),
        ("mixture.repetition_warning", 1.0),
        ("sources.text.path", "/elsewhere"),
        ("sources.text.index_dir", "/elsewhere"),
        ("sources.text.licence", "CC0"),
        (
            "sources.text.learn",
            Learn.all,
        ),  # in the table's digest instead: what it changes is there
    ],
)
def test_what_may_change_on_resume_is_not(path, value):
    assert digest(changed(put(path, value))) == digest(changed(lambda config: None))


def test_the_content_of_a_source_is_in_the_digest():
    other = [replace(TABLES[0], digest="other bytes"), TABLES[1]]
    assert digest(data_config(other), other) != digest(data_config(TABLES), TABLES)


def test_image_tokens_on_top_is_in_the_digest():
    plain = PackingConfig(enabled=False, sequence_length=512)
    on_top = PackingConfig(enabled=False, sequence_length=512, image_tokens_on_top=True)
    assert digest(data_config(TABLES, packing=plain)) != digest(data_config(TABLES, packing=on_top))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("packing.sequence_length", 0, ["data.packing.sequence_length=0", "1 or more"]),
        ("packing.window_samples", 0, ["data.packing.window_samples=0"]),
        ("packing.max_images", -1, ["data.packing.max_images=-1", "0 or more"]),
        ("packing.image_tokens_on_top", True, ["data.packing.enabled=true", "Turn one"]),
        ("order.lanes", 0, ["data.order.lanes=0"]),
        ("order.block_samples", 0, ["data.order.block_samples=0"]),
        ("batch.sequences", 0, ["data.batch.sequences=0"]),
        ("sources.text.max_epochs", 0.0, ["data.sources.text.max_epochs=0.0", "above 0"]),
        ("sources.text.max_epochs", math.inf, ["max_epochs=inf: must be a number", "null for"]),
        ("mixture.category_weights.chart", 1.0, ["'chart'", "default"]),
        ("packing.top_up_texts_per_sample", -0.5, ["top_up_texts_per_sample=-0.5", "0 or more"]),
        ("packing.top_up_texts_per_sample", 0.5, ["data.mixture.grouping=true", "Set it to 0"]),
    ],
)
def test_values_that_are_refused(path, value, words):
    with pytest.raises(ConfigError) as refused:
        digest(changed(put(path, value)))
    for word in words:
        assert word in str(refused.value)


def test_top_up_of_one_modality_is_refused():
    config = data_config(
        TABLES,
        mixture=MixtureConfig(language_share=0.0, grouping=True),
        packing=PackingConfig(enabled=True, sequence_length=4096, top_up_texts_per_sample=0.5),
    )
    with pytest.raises(ConfigError, match=r"language_share=0.0: the run has one modality.*to 0"):
        digest(config)


def test_a_source_without_any_piece_is_refused():
    empty = ListedTable(name="bad", modality=Modality.language, shard_samples=[2], lengths=[[], []])
    tables = [empty, picture_table()]
    with pytest.raises(DataError, match=r"'bad' \(/data/bad\) has no language sample.*of 2 in"):
        Recipe(tables, config=data_config(tables))


def test_sources_that_are_never_drawn_are_named(caplog):
    with caplog.at_level(logging.WARNING):
        Recipe(TABLES, config=data_config(TABLES, mixture=MixtureConfig(language_share=0.0)))
    assert "never drawn" in caplog.text
    assert "'text'" in caplog.text


def test_sample_limit_is_epochs_of_the_source():
    recipe = Recipe(TABLES, config=data_config(TABLES, max_epochs={"text": 1.255}))
    assert recipe.sample_limit("text") == 126
    assert recipe.sample_limit("pictures") == math.inf
