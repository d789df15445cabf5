"""Sources of known lengths, in memory, for the benchmarks of the plan.

Texts are log-normal with a median of 545 tokens, cut at the sequence length. Multimodal samples
have one image of 576 tokens (nine in ten) or two to four, and log-normal text with a median of 121
tokens. Lengths are drawn once, as many as ``DRAWN``, and repeat: a source of any size costs as
much memory as one of ``DRAWN`` samples, and reading it costs what a mapped token sidecar costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from vltrain.batch import Modality, RecordKind
from vltrain.data.config import (
    BatchConfig,
    DataConfig,
    MixtureConfig,
    OrderConfig,
    PackingConfig,
    SourceConfig,
)
from vltrain.data.plan import Plan
from vltrain.data.recipe import Recipe

SEQUENCE_LENGTH = 4096
TOKENS_PER_IMAGE = 576
DRAWN = 1_000_000
SHARD_SAMPLES = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """As the plan reads them of a token sidecar."""

    piece: np.ndarray
    sample: np.ndarray
    tokens: np.ndarray
    supervised: np.ndarray
    image_tokens: np.ndarray
    images: np.ndarray


class SyntheticTable:
    """A piece table of one piece per sample. lengths: tokens and images of ``DRAWN`` samples."""

    def __init__(
        self, name: str, *, modality: Modality, num_samples: int, lengths: tuple[np.ndarray, ...]
    ) -> None:
        self.name, self.modality, self.num_samples = name, modality, num_samples
        self.num_pieces = num_samples
        self.digest = f"{name}-{num_samples}"
        full, rest = divmod(num_samples, SHARD_SAMPLES)
        self.shard_samples = [SHARD_SAMPLES] * full + ([rest] if rest else [])
        self._tokens, self._images = lengths

    def pieces_of_samples(self, first: int, count: int) -> Columns:
        samples = np.arange(first, first + count)
        begin = first % DRAWN
        if begin + count <= DRAWN:
            tokens, images = (x[begin : begin + count] for x in (self._tokens, self._images))
        else:
            tokens, images = (x[samples % DRAWN] for x in (self._tokens, self._images))
        image_tokens = images * TOKENS_PER_IMAGE
        return Columns(
            piece=samples,
            sample=samples,
            tokens=tokens,
            supervised=tokens - image_tokens,
            image_tokens=image_tokens,
            images=images,
        )


def texts(num_samples: int = DRAWN, *, name: str = "texts", median: float = 545) -> SyntheticTable:
    """A source of texts."""
    return SyntheticTable(
        name, modality=Modality.language, num_samples=num_samples, lengths=_text_lengths(median)
    )


def pictures(
    num_samples: int = DRAWN, *, name: str = "pictures", image_share: float = 1.0
) -> SyntheticTable:
    """A source of multimodal samples. ``image_share`` 0 leaves their texts alone (short
    multimodal samples)."""
    return SyntheticTable(
        name,
        modality=Modality.multimodal,
        num_samples=num_samples,
        lengths=_picture_lengths(image_share),
    )


@cache
def _text_lengths(median: float) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.Generator(np.random.Philox(1))
    tokens = _log_normal(draw, median=median, sigma=1.1)
    return np.minimum(tokens, SEQUENCE_LENGTH), np.zeros(DRAWN, dtype=np.int32)


@cache
def _picture_lengths(image_share: float) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.Generator(np.random.Philox(2))
    images = np.where(draw.random(DRAWN) < 0.1, draw.integers(2, 5, DRAWN), 1).astype(np.int32)
    images *= draw.random(DRAWN) < image_share
    tokens = _log_normal(draw, median=121, sigma=0.9) + images * TOKENS_PER_IMAGE
    return np.minimum(tokens, SEQUENCE_LENGTH).astype(np.int32), images


def _log_normal(draw: np.random.Generator, *, median: float, sigma: float) -> np.ndarray:
    values = np.exp(np.log(median) + sigma * draw.standard_normal(DRAWN))
    return np.maximum(2, values).astype(np.int32)


def plan_of(
    tables: list[SyntheticTable],
    *,
    sequences: int = 2304,
    mixture: MixtureConfig | None = None,
    packing: PackingConfig | None = None,
) -> Plan:
    """The plan of these sources, 70 : 30 in tokens and packed to 4,096 unless told otherwise."""
    config = DataConfig(
        sources={
            table.name: SourceConfig(path=table.name, kind=RecordKind.text, modality=table.modality)
            for table in tables
        },
        mixture=mixture or MixtureConfig(language_share=0.7),
        packing=packing or PackingConfig(enabled=True, sequence_length=SEQUENCE_LENGTH),
        order=OrderConfig(),
        batch=BatchConfig(sequences=sequences),
    )
    return Plan(Recipe(tables, config=config), seed=0)
