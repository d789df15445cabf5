"""Activation checkpointing, the same way for every part: none, selective or full.

In: a callable, or a tower made of transformers' layers. Out: the same numbers; in the backward pass
what was not kept is computed again. Non-reentrant, so that a part that needs no gradient keeps and
recomputes nothing, and ZeRO-3's hooks run as in the forward.

``full`` keeps a layer's input alone and computes the layer twice. ``selective`` keeps what is dear
to compute (matrix products, convolutions, attention) and computes the rest again: norms,
activations, casts, masks. Rejected: transformers' gradient_checkpointing_enable on a whole model,
which makes its frozen towers need gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from vltrain.errors import ConfigError
from vltrain.models.config import Recompute

_aten = torch.ops.aten
KEPT = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten.baddbmm.default,
        _aten.convolution.default,
        _aten._grouped_mm.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
    }
)
"""Operations whose results ``selective`` keeps."""


def recomputed(
    function: Callable[..., Any], *arguments: Any, how: Recompute, **keywords: Any
) -> Any:
    """``function(*arguments, **keywords)``, its activations kept as ``how`` says."""
    if how is Recompute.none or not torch.is_grad_enabled():
        return function(*arguments, **keywords)
    return _checkpoint(how)(function, *arguments, preserve_rng_state=False, **keywords)


def recompute_layers(tower: nn.Module, *, how: Recompute, part: str) -> None:
    """Recompute each layer of a tower of transformers' own while it trains. Raises ConfigError
    where the tower has no layers that transformers can recompute."""
    if how is Recompute.none:
        return
    layers = [m for m in tower.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            f"model.activation_checkpointing.{part}={how.value}: {type(tower).__name__} has no "
            "layers that can be computed again; set it to none"
        )
    for layer in layers:
        layer.gradient_checkpointing = True
        object.__setattr__(layer, "_gradient_checkpointing_func", _checkpoint(how))


def _checkpoint(how: Recompute) -> Callable[..., Any]:
    if how is Recompute.full:
        return functools.partial(checkpoint, use_reentrant=False)
    return functools.partial(
        checkpoint,
        use_reentrant=False,
        context_fn=functools.partial(create_selective_checkpoint_contexts, _policy),
    )


def _policy(_: Any, operation: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
    kept = operation in KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
