"""Loads of the experts over a global step, and the correction that evens them out without a loss.

In: each micro-batch's loads. Out, once per step and the same on every rank: statistics to log, and
for ``noaux_tc`` the corrections moved by a fixed step, up for experts below the mean load, down for
those above it (the auxiliary-loss-free balancing that DeepSeek-VL2 4.1 uses; the released code can
only infer with it).

Loads and corrections are neither parameters nor buffers: an engine would cast them to bf16, where
steps of 0.001 are lost, partition them, and find that a "frozen" tensor has changed. Published
weights have the corrections as tensors, one for each layer with experts (``named``). Cost: one
exchange of a few thousand counts per step over gloo, which waits for the device once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vltrain import distributed
from vltrain.errors import CheckpointError
from vltrain.models.config import LanguageConfig
from vltrain.models.moe_config import Selection

_CORRECTION = ".mlp.gate.e_score_correction_bias"


def is_correction(name: str) -> bool:
    """Whether a full name is of a layer's corrections."""
    return name.endswith(_CORRECTION)


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterStatistics:
    """How a step's real tokens were spread over the experts, over all ranks.

    loads: tokens of each expert, by layer. max_over_mean: the busiest expert's load over the mean,
    by layer. entropy: of the loads, as a share of the greatest possible (1: even), by layer.
    """

    loads: tuple[tuple[int, ...], ...]
    max_over_mean: tuple[float, ...]
    entropy: tuple[float, ...]


class RouterBalance:
    """State of all routers. ``first_layer``: the first layer with experts; ``layers``: how many
    have them; ``corrects``: whether experts are chosen with a correction."""

    def __init__(self, *, first_layer: int, layers: int, experts: int, corrects: bool) -> None:
        self.first_layer = first_layer
        self.shape = (layers, experts)
        self._loads = torch.zeros(self.shape, dtype=torch.int64)
        self.corrections = torch.zeros(self.shape, dtype=torch.float32) if corrects else None
        """fp32 (layers, experts), or None."""

    @classmethod
    def of(cls, config: LanguageConfig) -> RouterBalance:
        """Of a language model with experts, at its beginning."""
        moe = config.moe
        assert moe is not None, "a language model with experts"
        return cls(
            first_layer=moe.dense_layers,
            layers=config.layers - moe.dense_layers,
            experts=moe.experts,
            corrects=moe.selection is Selection.noaux_tc,
        )

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """(full name, corrections fp32 (experts,), shared with the model) of each layer that has
        them."""
        for number, row in enumerate(() if self.corrections is None else self.corrections):
            yield f"language.model.layers.{self.first_layer + number}{_CORRECTION}", row

    def correction(self, layer: int) -> Tensor | None:
        """fp32 (experts,), what is added to the scores of ``layer``; None where nothing is."""
        number = layer - self.first_layer
        if self.corrections is None or number < 0:
            return None
        return self.corrections[number]

    def count(self, loads: Tensor) -> None:
        """Add a micro-batch's loads, int64 (layers, experts)."""
        self._loads += loads

    def finish_step(self, *, step_size: float) -> RouterStatistics:
        """Sum the loads over ranks, move the corrections by ``step_size`` (0: leave them), begin
        anew (collective; every rank calls it with the same ``step_size``)."""
        summed = distributed.sum_floats(self._loads.flatten().tolist())
        self._loads.zero_()
        loads = torch.tensor(summed, dtype=torch.float64).view(self.shape)
        if self.corrections is not None and step_size:
            below = (loads.mean(dim=1, keepdim=True) - loads).sign().float()
            self.corrections += step_size * below.to(self.corrections.device)
        return statistics(loads.long().tolist())

    def forget_step(self) -> None:
        """Drop what was counted: the step was not finite and updates nothing."""
        self._loads.zero_()

    def state(self) -> list[list[float]] | None:
        """The corrections as JSON, exactly (a float32 survives); None where there are none."""
        return None if self.corrections is None else self.corrections.tolist()

    def restore(self, state: list[list[float]] | None) -> None:
        """Inverse of ``state``. Raises CheckpointError where it is of another model."""
        expected = None if self.corrections is None else self.shape
        found = None if state is None else (len(state), len(state[0]) if state else 0)
        if found != expected:
            raise CheckpointError(
                f"the checkpoint has router corrections of {_size(found)} (layers x experts), this "
                f"model of {_size(expected)}: it was trained with another model.language.moe"
            )
        if state is not None and self.corrections is not None:
            self.corrections.copy_(torch.tensor(state))


def statistics(loads: Sequence[Sequence[int]]) -> RouterStatistics:
    """Of the loads of each layer's experts."""
    ratios, entropies = [], []
    for layer in loads:
        total = sum(layer)
        ratios.append(max(layer) * len(layer) / total if total else 0.0)
        shares = [load / total for load in layer if load] if total else []
        entropies.append(-sum(s * math.log(s) for s in shares) / math.log(len(layer)))
    return RouterStatistics(
        loads=tuple(tuple(layer) for layer in loads),
        max_over_mean=tuple(ratios),
        entropy=tuple(entropies),
    )


def _size(shape: tuple[int, int] | None) -> str:
    return "none" if shape is None else f"{shape[0]} x {shape[1]}"
