"""Piece tables in memory for tests of the plan: listed ones, and huge ones that compute sizes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from vltrain.batch import Modality, RecordKind
from vltrain.data.config import (
    BatchConfig,
    DataConfig,
    MixtureConfig,
    OrderConfig,
    PackingConfig,
    SourceConfig,
    WhenSpent,
)
from vltrain.data.plan import Plan
from vltrain.data.recipe import Recipe


@dataclass(frozen=True)
class Columns:
    piece: np.ndarray
    sample: np.ndarray
    tokens: np.ndarray
    supervised: np.ndarray
    image_tokens: np.ndarray
    images: np.ndarray


Sizes = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Sample numbers -> tokens, supervised, images of one piece each."""


@dataclass
class ComputedTable:
    """One piece per sample; sizes are a function of its number, so a huge table costs nothing."""

    name: str
    modality: Modality
    shard_samples: list[int]
    sizes: Sizes
    tokens_per_image: int = 576
    digest: str = "fake"
    reads: int = field(default=0)

    @property
    def num_samples(self) -> int:
        return sum(self.shard_samples)

    @property
    def num_pieces(self) -> int:
        return self.num_samples

    def pieces_of_samples(self, first: int, count: int) -> Columns:
        self.reads += 1
        samples = np.arange(first, first + count)
        tokens, supervised, images = self.sizes(samples)
        return Columns(
            piece=samples,
            sample=samples,
            tokens=tokens.astype(np.int32),
            supervised=supervised.astype(np.int32),
            image_tokens=(images * self.tokens_per_image).astype(np.int32),
            images=images.astype(np.int32),
        )


@dataclass
class ListedTable:
    """Explicit pieces: for each sample a list of piece lengths (empty: nothing of it is drawn)."""

    name: str
    modality: Modality
    shard_samples: list[int]
    lengths: list[list[int]]
    images: int = 0
    image_tokens: int = 0
    digest: str = "fake"

    @property
    def num_samples(self) -> int:
        return sum(self.shard_samples)

    @property
    def num_pieces(self) -> int:
        return sum(len(pieces) for pieces in self.lengths)

    def pieces_of_samples(self, first: int, count: int) -> Columns:
        before = sum(len(pieces) for pieces in self.lengths[:first])
        sample, tokens = [], []
        for number in range(first, first + count):
            sample += [number] * len(self.lengths[number])
            tokens += self.lengths[number]
        rows = len(tokens)
        return Columns(
            piece=np.arange(before, before + rows),
            sample=np.array(sample, dtype=np.int64),
            tokens=np.array(tokens, dtype=np.int32),
            supervised=np.maximum(np.array(tokens, dtype=np.int32) - 1, 0),
            image_tokens=np.full(rows, self.image_tokens, dtype=np.int32),
            images=np.full(rows, self.images, dtype=np.int32),
        )


def uniform(samples: np.ndarray, salt: int) -> np.ndarray:
    """A fixed pseudo-random number in (0, 1) for each sample number (splitmix64)."""
    x = samples.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt * 7919 + 1)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) / 2.0**53 + 2.0**-54


def log_normal(samples: np.ndarray, *, median: float, sigma: float, salt: int) -> np.ndarray:
    radius = np.sqrt(-2.0 * np.log(uniform(samples, salt)))
    normal = radius * np.cos(2.0 * np.pi * uniform(samples, salt + 1))
    return np.maximum(2, median * np.exp(sigma * normal)).astype(np.int64)


def text_sizes(*, median: float = 545, sigma: float = 1.1, longest: int = 4096) -> Sizes:
    def sizes(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tokens = np.minimum(log_normal(samples, median=median, sigma=sigma, salt=1), longest)
        return tokens, tokens - 1, np.zeros_like(tokens)

    return sizes


def picture_sizes(*, median: float = 121, sigma: float = 0.9, longest: int = 4096) -> Sizes:
    """One image in 90 %, two to four in 10 %, 576 tokens each, and log-normal text."""

    def sizes(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        many = uniform(samples, 5) < 0.1
        images = np.where(many, 2 + (uniform(samples, 6) * 3).astype(np.int64), 1)
        text = log_normal(samples, median=median, sigma=sigma, salt=7)
        tokens = np.minimum(text + images * 576, longest)
        return tokens, tokens - images * 576, images

    return sizes


def constant_sizes(tokens: int, *, images: int = 0) -> Sizes:
    def sizes(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        full = np.full(len(samples), tokens)
        return full, full - 1, np.full(len(samples), images)

    return sizes


def text_table(
    name: str = "text", *, samples: int = 100_000, sizes: Sizes | None = None
) -> ComputedTable:
    return ComputedTable(
        name=name,
        modality=Modality.language,
        shard_samples=_shards(samples),
        sizes=sizes or text_sizes(),
    )


def picture_table(
    name: str = "pictures", *, samples: int = 100_000, sizes: Sizes | None = None
) -> ComputedTable:
    return ComputedTable(
        name=name,
        modality=Modality.multimodal,
        shard_samples=_shards(samples),
        sizes=sizes or picture_sizes(),
    )


def _shards(samples: int, *, per_shard: int = 10_000) -> list[int]:
    full, rest = divmod(samples, per_shard)
    return [per_shard] * full + ([rest] if rest else [])


def data_config(
    tables: list,
    *,
    sequences: int = 8,
    mixture: MixtureConfig | None = None,
    packing: PackingConfig | None = None,
    order: OrderConfig | None = None,
    weights: dict[str, float] | None = None,
    max_epochs: dict[str, float] | None = None,
    when_spent: WhenSpent = WhenSpent.end,
    categories: dict[str, str] | None = None,
) -> DataConfig:
    """``when_spent``: of every source."""
    sources = {}
    for table in tables:
        sources[table.name] = SourceConfig(
            path=f"/data/{table.name}",
            kind=RecordKind.text if table.modality is Modality.language else RecordKind.caption,
            modality=table.modality,
            category=(categories or {}).get(table.name, "default"),
            weight=(weights or {}).get(table.name, 1.0),
            max_epochs=(max_epochs or {}).get(table.name),
            when_spent=when_spent,
        )
    return DataConfig(
        sources=sources,
        mixture=mixture or MixtureConfig(language_share=0.7),
        packing=packing or PackingConfig(enabled=True, sequence_length=4096, max_images=8),
        order=order or OrderConfig(),
        batch=BatchConfig(sequences=sequences),
    )


def make_plan(tables: list, *, seed: int = 0, **settings) -> Plan:
    return Plan(Recipe(tables, config=data_config(tables, **settings)), seed=seed)


SMALL = PackingConfig(enabled=True, sequence_length=4096, window_samples=64)
UNPACKED = PackingConfig(enabled=False, sequence_length=4096, window_samples=64)
LANGUAGE_ONLY = MixtureConfig(language_share=1.0)


def take(plan: Plan, steps: int, *, cursor=None):
    return list(itertools.islice(plan.steps(cursor), steps))


def drawn(steps, *, source: int = 0) -> list[int]:
    return [ref.piece for s in steps for p in s.packs for ref in p.pieces if ref.source == source]


def through_json(cursor):
    return json.loads(json.dumps(cursor))


def language_ratio(steps) -> float:
    return sum(s.tokens["language"] for s in steps) / sum(sum(s.tokens.values()) for s in steps)


def fill(steps, *, capacity: int = 4096) -> float:
    tokens = sum(sum(s.tokens.values()) for s in steps)
    return tokens / (capacity * sum(len(s.packs) for s in steps))
