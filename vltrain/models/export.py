"""Our weights as a published directory: for stock transformers, or as the original releases.

In: the model's config, a source of its tensors under our full names, a tokenizer directory. Out:
config, weights in shards, tokenizer, processor. Memory: one published tensor at a time, and what it
is stacked of or cut from (a layer's experts); no model is built but on the meta device. config.json
is written last, so that an export that was cut short is not taken for a whole one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from vltrain.errors import WeightsError
from vltrain.models.build import build_model
from vltrain.models.config import ModelConfig
from vltrain.models.export_original import OriginalRelease
from vltrain.models.export_tokens import ExportTokens
from vltrain.models.export_transformers import StockTransformers
from vltrain.models.export_vl2 import OriginalReleaseVl2
from vltrain.models.layouts import (
    Stored,
    is_unused,
    published_tensors,
    stored_shape,
    stored_tensor,
)
from vltrain.models.router_balance import RouterBalance, is_correction
from vltrain.models.shards import write_shards
from vltrain.models.trainable import PARTS, part_of

SHOWN = 10
"""Tensors that a message shows."""


class ExportFormat(str, Enum):
    transformers = "transformers"  # AutoModelForImageTextToText and AutoProcessor
    deepseek_vl = "deepseek_vl"  # the original release: model_type multi_modality
    deepseek_vl2 = "deepseek_vl2"  # the original release: model_type deepseek_vl_v2


_FORMATS: dict[ExportFormat, StockTransformers | OriginalRelease | OriginalReleaseVl2] = {
    ExportFormat.transformers: StockTransformers(),
    ExportFormat.deepseek_vl: OriginalRelease(),
    ExportFormat.deepseek_vl2: OriginalReleaseVl2(),
}


class WeightSource(Protocol):
    """shapes: of every parameter and correction there is, by our full name; unused tensors may be
    among them."""

    shapes: dict[str, tuple[int, ...]]

    def tensor(self, name: str) -> Tensor: ...


class StateSource:
    """A state that is in memory."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state
        self.shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}

    def tensor(self, name: str) -> Tensor:
        return self._state[name]


def export_model(
    directory: str | Path,
    *,
    kind: ExportFormat,
    config: ModelConfig,
    source: WeightSource,
    tokens: ExportTokens,
    dtype: torch.dtype,
    shard_bytes: int,
) -> tuple[str, ...]:
    """Write the directory. Returns the unused tensors (our names) that the format has and
    ``source`` lacks: they are written as ``neutral`` values.

    Corrections of routers are written in float32 whatever ``dtype`` is: they grow by steps that
    other types round away. Raises WeightsError if ``source`` is not exactly the model's tensors, or
    there is no tokenizer; ConfigError as ``refuse_unfit``.
    """
    refuse_unfit(config, kind=kind)
    directory = Path(directory)
    _check(directory, expected=tensor_shapes(config), found=source.shapes)
    tokens.check()
    kept = {name: shape for name, shape in source.shapes.items() if is_unused(name)}
    plan = plan_export(kind, config=config, kept=kept)

    def own(name: str) -> Tensor:
        made = plan.neutral.get(name)
        return source.tensor(name) if made is None else neutral(name, shape=made)

    last_read = _LastRead(own)
    directory.mkdir(parents=True, exist_ok=True)
    write_shards(
        directory,
        shapes=plan.shapes,
        read=lambda theirs: stored_tensor(plan.stored[theirs], last_read),
        dtype=dtype,
        in_float32={n for n, one in plan.stored.items() if is_correction(one.ours[0])},
        shard_bytes=shard_bytes,
    )
    chosen = _FORMATS[kind]
    chosen.write_processor(directory, config=config, tokens=tokens)
    settings = chosen.settings(config, tokens=tokens, dtype=dtype, unused=plan.unused)
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")
    return tuple(plan.neutral)


def refuse_unfit(config: ModelConfig, *, kind: ExportFormat) -> None:
    """Raises ConfigError for a model that the format has no place for."""
    _FORMATS[kind].check(config)


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """What an export writes. stored, shapes: by published name. unused: our names of the unused
    tensors among them, with shapes; neutral: those of them that nothing stored."""

    stored: dict[str, Stored]
    shapes: dict[str, tuple[int, ...]]
    unused: dict[str, tuple[int, ...]]
    neutral: dict[str, tuple[int, ...]]


def plan_export(
    kind: ExportFormat, *, config: ModelConfig, kept: Mapping[str, tuple[int, ...]]
) -> ExportPlan:
    """Names and shapes of an export; nothing is read. kept: unused tensors that are there, by our
    names. Raises WeightsError where the format has no place for a tensor."""
    chosen = _FORMATS[kind]
    unused = chosen.unused(config, kept=kept)
    own = {**tensor_shapes(config), **unused}
    stored = {one.theirs: one for one in published_tensors(own, layout=chosen.layout(config))}
    return ExportPlan(
        stored=stored,
        shapes={theirs: stored_shape(one, own) for theirs, one in stored.items()},
        unused=unused,
        neutral={name: shape for name, shape in unused.items() if kept.get(name) != shape},
    )


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter of the model by its full name, part by part. Allocates nothing."""
    built = build_model(
        config,
        trainable=(),
        freeze=(),
        dtype=torch.float32,
        frozen_dtype=torch.float32,
        device="meta",
        seed=0,
    )
    named = sorted(built.named_parameters(), key=lambda one: PARTS.index(part_of(one[0])))
    return {name: tuple(parameter.shape) for name, parameter in named}


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """``parameter_shapes``, and those of the routers' corrections, which are no parameters."""
    shapes = parameter_shapes(config)
    if config.language.moe is not None:
        corrections = RouterBalance.of(config.language).named()
        shapes |= {name: tuple(tensor.shape) for name, tensor in corrections}
    return shapes


class _LastRead:
    """A reader that keeps what it read last: an export asks for a layer's experts once for each."""

    def __init__(self, read: Callable[[str], Tensor]) -> None:
        self._read = read
        self._kept: tuple[str, Tensor] | None = None

    def __call__(self, name: str) -> Tensor:
        if self._kept is None or self._kept[0] != name:
            self._kept = None  # before the next is read
            self._kept = (name, self._read(name))
        return self._kept[1]


def neutral(name: str, *, shape: tuple[int, ...]) -> Tensor:
    """What stands for an unused tensor that nothing stored: ones for a norm's weight, else
    zeros."""
    return torch.ones(shape) if name.endswith("norm.weight") else torch.zeros(shape)


def _check(
    directory: Path,
    *,
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
) -> None:
    faults = [f"missing {name} {shape}" for name, shape in expected.items() if name not in found]
    faults += [
        f"unexpected {name} {shape}"
        for name, shape in found.items()
        if name not in expected and not is_unused(name)
    ]
    faults += [
        f"mis-shaped {name}: found {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if faults:
        more = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise WeightsError(
            f"cannot export to {directory}: the weights are not those of the model:\n  "
            + "\n  ".join(faults[:SHOWN])
            + more
            + "\nExport with the config that the run was trained with"
        )
