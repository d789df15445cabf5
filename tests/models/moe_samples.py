"""The three variants of DeepSeek-VL2's language model, at full size and small."""

from __future__ import annotations

from typing import Any

import torch

from vltrain.models.config import Attention, LanguageConfig, ModelConfig
from vltrain.models.moe_config import ExpertsKind, MlaConfig, MoeConfig, Scoring, Selection
from vltrain.models.moe_language import MoeLanguageModel

VARIANTS = ("tiny", "small", "base")


def small_language(variant: str, *, init_std: float = 0.2, **moe: Any) -> LanguageConfig:
    """A variant's kind of attention and routing with few and narrow layers."""
    base = variant == "base"
    routing = {
        "experts": 8,
        "per_token": 2,
        "ffn": 16,
        "scoring": Scoring.sigmoid if base else Scoring.softmax,
        "selection": Selection.noaux_tc if base else Selection.greedy,
        "normalise_weights": base,
        "scale": 2.0 if base else 1.0,
    }
    latent = MlaConfig(kv_rank=8, nope_dim=8, rope_dim=4, value_dim=6)
    return LanguageConfig(
        width=32,
        layers=3,
        heads=2,
        kv_heads=2,
        ffn=48,
        vocab_size=64,
        max_positions=256,
        init_std=init_std,
        mla=None if variant == "tiny" else latent,
        moe=MoeConfig(**(routing | moe)),
    )


def model_config(language: LanguageConfig, **fields: Any) -> ModelConfig:
    return ModelConfig(name="moe", language=language, loss_chunk_tokens=64, **fields)


def small_model(
    variant: str,
    *,
    attention: Attention = Attention.sdpa,
    experts: ExpertsKind = ExpertsKind.grouped,
    recompute: bool = False,
    init_std: float = 0.2,
    **moe: Any,
) -> MoeLanguageModel:
    """The same weights at every call."""
    config = model_config(
        small_language(variant, init_std=init_std, **moe),
        attention=attention,
        experts=experts,
        activation_checkpointing=recompute,
    )
    torch.manual_seed(0)
    return MoeLanguageModel(config)
