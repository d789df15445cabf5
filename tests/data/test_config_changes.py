"""What may change when a run goes on: every key of the config, held against the table of
docs/data.md."""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from plan_fakes import ComputedTable, text_sizes
from shard_makers import byte_tokenizer

from vltrain.assemble.datapath import build_encoder
from vltrain.assemble.identity import model_digest
from vltrain.batch import Learn
from vltrain.data.config import SourceConfig
from vltrain.data.recipe import Recipe
from vltrain.data.sidecar import table_spec
from vltrain.runconfig import RunConfig

DOCS = Path(__file__).resolve().parents[2] / "docs/data.md"

# Values for keys whose own value does not say what another would be.
OTHER: dict[str, Any] = {
    "data.sources.shapes.fields": {"text": "md"},
    "data.sources.shapes.learn": Learn.answers,
    "data.sources.shapes.index_dir": "elsewhere",
    "data.sources.shapes.max_epochs": 2.0,
    "data.mixture.category_weights": {"text": 1, "caption": 5, "interleaved": 1, "sft": 3},
    "data.mixture.language_share": 0.5,
    "data.mixture.ramp.start_share": 0.9,
    "data.held_out": {},
    "stage.system_prompt": "Be brief.",
    "stage.trainable": ["adaptor"],
    "stage.freeze": ["adaptor.alpha"],
    "optim.parts": {"adaptor": {}},
    "optim.schedule.milestones": [0.7],
    "optim.schedule.factors": [0.5],
    "model.pad_color": [1, 2, 3],
    "model.sam": None,
    "engine.extra": {"steps_per_print": 7},
}
# What else has to hold for a key to be changed alone.
BESIDE: dict[str, dict[str, Any]] = {
    "data.packing.image_tokens_on_top": {"data.packing.enabled": False},
    "data.mixture.ramp.tokens": {"data.mixture.ramp.steps": 0},
}


@pytest.fixture(autouse=True)
def exclusion_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "shapes.jsonl"
    path.write_text('{"shard": "a.tar", "key": "1", "reason": "truncated"}\n')
    monkeypatch.setitem(OTHER, "data.sources.shapes.exclude", str(path))


def rules() -> list[tuple[list[str], str]]:
    """(patterns, what happens) of each row of the table."""
    table = DOCS.read_text(encoding="utf-8").split("| key | when a run goes on |")[1]
    rows = re.findall(r"^\| (`[^|]*) \| ([^|]*) \|$", table.split("\n\n")[0], re.MULTILINE)
    return [(re.findall(r"`([^`]+)`", keys), what) for keys, what in rows]


def rule_of(key: str) -> str:
    for patterns, what in rules():
        if any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns):
            return what
    pytest.fail(f"docs/data.md does not say what changing {key} does to a run that goes on")


def keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every key; of the sources, those of ``shapes``."""
    for field in dataclasses.fields(node):
        name = f"{prefix}{field.name}"
        value = getattr(node, field.name)
        if name == "data.sources":
            yield from keys(value["shapes"], "data.sources.shapes.")
        elif dataclasses.is_dataclass(value):
            yield from keys(value, f"{name}.")
        else:
            yield name


def get(config: RunConfig, key: str) -> Any:
    node: Any = config
    for word in key.split("."):
        node = node[word] if isinstance(node, dict) else getattr(node, word)
    return node


def put(config: RunConfig, key: str, value: Any) -> None:
    parent, _, leaf = key.rpartition(".")
    setattr(get(config, parent) if parent else config, leaf, value)


def other(key: str, value: Any) -> Any:
    """Another value of the same kind."""
    if key in OTHER:
        return OTHER[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, Enum):
        kinds = list(type(value))
        return kinds[(kinds.index(value) + 1) % len(kinds)]
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value + 0.125
    if isinstance(value, str) or value is None:
        return f"{value}-other"
    if isinstance(value, list | tuple):
        return [*value, *value] if value else [0.5]
    return pytest.fail(f"{key}={value!r}: give another value in OTHER")


def recipe_digest(config: RunConfig) -> str:
    """As a run has it, over tables that are named by what their sidecars would be named by."""
    encoder = build_encoder(config, byte_tokenizer())
    tables = [
        ComputedTable(
            name=name,
            modality=source.modality,
            shard_samples=[100],
            sizes=text_sizes(),
            digest=table_spec(source, encoder_digest=encoder.digest).key,
        )
        for name, source in config.data.sources.items()
    ]
    return Recipe(tables, config=config.data).digest


def others_of_identity(config: RunConfig) -> tuple[int, int, str]:
    return config.run.seed, config.stage.number, model_digest(config.model)


def test_every_key_does_what_the_table_says(compose) -> None:
    whole = compose("stage=2", "+experiment=demo")
    seen = set()
    for key in keys(whole):
        what = rule_of(key)
        seen.add(what)
        before = copy.deepcopy(whole)
        for beside, value in BESIDE.get(key, {}).items():
            put(before, beside, value)
        after = copy.deepcopy(before)
        put(after, key, other(key, get(before, key)))
        assert get(after, key) != get(before, key), key
        if key.startswith("model."):
            changed = others_of_identity(after) != others_of_identity(before)
            assert changed == what.startswith("refused"), f"{key}: {what}"
            continue
        assert (recipe_digest(after) != recipe_digest(before)) == ("another recipe" in what), (
            f"{key}: {what}"
        )
        assert (others_of_identity(after) != others_of_identity(before)) == (
            what == "refused: another run"
        ), f"{key}: {what}"
    assert seen == {what for _, what in rules()}, "a row of the table names no key"


def test_a_source_more_or_less_is_another_recipe(compose) -> None:
    config = compose("stage=2", "+experiment=demo")
    more, less = copy.deepcopy(config), copy.deepcopy(config)
    text = config.data.sources["text"]
    more.data.sources["more"] = SourceConfig(path="x", kind=text.kind, modality=text.modality)
    del less.data.sources["digits"]
    assert len({recipe_digest(c) for c in (config, more, less)}) == 3
