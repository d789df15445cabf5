"""The recipe: all that decides the order of the data, checked once and named by one digest.

In: the piece tables of the sources and the data config. Out: the checked weights, and a digest over
everything that changes which samples form which pack of which step. What may change on resume
without changing the order is not in it: ranks, micro-batch, workers, prefetch, decoding, fault
budget, paths.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from typing import Any

import xxhash

from vltrain.batch import Modality
from vltrain.data.config import DataConfig
from vltrain.data.mixture import modalities_in_use, source_weights
from vltrain.data.order import PieceTable
from vltrain.errors import ConfigError, DataError

log = logging.getLogger(__name__)

PLAN_VERSION = 2
"""Raise when the same recipe would give other steps than before; it is part of the digest."""


class Recipe:
    """The checked recipe.

    tables: in the order of ``config.sources``; ``PieceRef.source`` counts in this order.
    weights: by modality in use, the share of each source by name. digest: xxh3-128, hex.
    """

    def __init__(self, tables: Sequence[PieceTable], *, config: DataConfig) -> None:
        self.tables = tuple(tables)
        self.config = config
        names = [table.name for table in self.tables]
        assert names == list(config.sources), (names, list(config.sources))
        _check_sizes(config)
        self.weights = source_weights(config.sources, config.mixture)
        _check_tables(self.tables, config)
        _say_what_is_idle(self.weights, names)
        self.facts = _facts(self.tables, config)
        written = json.dumps(self.facts, sort_keys=True, separators=(",", ":"))
        self.digest: str = xxhash.xxh3_128_hexdigest(written.encode())

    def index(self, name: str) -> int:
        """Position of a source in the recipe."""
        return list(self.config.sources).index(name)

    def sample_limit(self, name: str) -> float:
        """Samples after which a finite source is spent; inf for one that repeats for ever."""
        epochs = self.config.sources[name].max_epochs
        if epochs is None:
            return math.inf
        return math.ceil(epochs * self.tables[self.index(name)].num_samples)


def _facts(tables: Sequence[PieceTable], config: DataConfig) -> dict[str, Any]:
    """What the digest is taken of. A table's own digest names its content and its encoding."""
    mixture, packing, ramp = config.mixture, config.packing, config.mixture.ramp
    sources = [
        {
            "name": table.name,
            "table": table.digest,
            "modality": config.sources[table.name].modality.value,
            "category": config.sources[table.name].category,
            "weight": config.sources[table.name].weight,
            "max_epochs": config.sources[table.name].max_epochs,
            "when_spent": config.sources[table.name].when_spent.value,
        }
        for table in tables
    ]
    return {
        "plan_version": PLAN_VERSION,
        "sources": sources,
        "mixture": {
            "unit": mixture.unit.value,
            "language_share": mixture.language_share,
            "ramp": [ramp.kind.value, ramp.steps, ramp.tokens, ramp.start_share],
            "grouping": mixture.grouping,
            "category_weights": dict(mixture.category_weights),
        },
        "packing": {
            "enabled": packing.enabled,
            "sequence_length": packing.sequence_length,
            "image_tokens_on_top": packing.image_tokens_on_top,
            "window_samples": packing.window_samples,
            "top_up_texts_per_sample": packing.top_up_texts_per_sample,
            "max_images": packing.max_images,
        },
        "order": {"block_samples": config.order.block_samples, "lanes": config.order.lanes},
        "sequences": config.batch.sequences,
    }


def _check_sizes(config: DataConfig) -> None:
    for where, value in (
        ("data.packing.sequence_length", config.packing.sequence_length),
        ("data.packing.window_samples", config.packing.window_samples),
        ("data.order.block_samples", config.order.block_samples),
        ("data.order.lanes", config.order.lanes),
        ("data.batch.sequences", config.batch.sequences),
    ):
        if value < 1:
            raise ConfigError(f"{where}={value}: must be 1 or more.")
    if config.packing.max_images < 0:
        raise ConfigError(
            f"data.packing.max_images={config.packing.max_images}: must be 0 or more."
        )
    _check_top_up(config)
    if config.packing.enabled and config.packing.image_tokens_on_top:
        raise ConfigError(
            "data.packing.image_tokens_on_top=true with data.packing.enabled=true: a packed "
            "sequence has one length for text and images together. Turn one of them off."
        )


def _check_top_up(config: DataConfig) -> None:
    texts = config.packing.top_up_texts_per_sample
    where = f"data.packing.top_up_texts_per_sample={texts}"
    if not (math.isfinite(texts) and texts >= 0):
        raise ConfigError(f"{where}: a number of 0 or more (0: no top-up).")
    if texts and not (config.packing.enabled and config.mixture.grouping):
        raise ConfigError(
            f"{where} needs data.packing.enabled=true and data.mixture.grouping=true (without "
            "grouping, texts and images share packs anyway). Set it to 0, or turn both on."
        )
    if texts and len(modalities_in_use(config.mixture)) < 2:
        raise ConfigError(
            f"{where} with data.mixture.language_share={config.mixture.language_share}: the run "
            "has one modality, so there is nothing to top up or to top up with. Set it to 0."
        )


def _check_tables(tables: Sequence[PieceTable], config: DataConfig) -> None:
    for table in tables:
        source = config.sources[table.name]
        if table.num_pieces == 0:
            raise DataError(
                f"source '{table.name}' ({source.path}) has no {table.modality.value} sample that "
                f"can be used, of {table.num_samples} in its shards. See prepare's report for what "
                f"was excluded and why, correct data.sources.{table.name}, or remove it."
            )
        if source.max_epochs is not None and not 0 < source.max_epochs < math.inf:
            raise ConfigError(
                f"data.sources.{table.name}.max_epochs={source.max_epochs}: must be a number above "
                "0, or null for a source that repeats for ever."
            )


def _say_what_is_idle(weights: dict[Modality, dict[str, float]], names: list[str]) -> None:
    drawn = {name for shares in weights.values() for name in shares}
    idle = [name for name in names if name not in drawn]
    if idle:
        log.warning("sources never drawn (their weight or their modality's share is 0): %s", idle)
