"""The model's sizes as the plain numbers that counting needs (models and metrics do not know each
other)."""

from __future__ import annotations

from vltrain.metrics.throughput import (
    ExpertsShape,
    LanguageShape,
    LatentShape,
    ModelShape,
    SamShape,
    SiglipShape,
)
from vltrain.models.config import ModelConfig
from vltrain.models.moe_config import MlaConfig, MoeConfig


def model_shape(config: ModelConfig) -> ModelShape:
    """What ``count_flops`` needs of a model config."""
    sam, siglip, language = config.sam, config.siglip, config.language
    return ModelShape(
        sam=None
        if sam is None
        else SamShape(
            image_size=sam.image_size,
            patch_size=sam.patch_size,
            width=sam.width,
            layers=sam.layers,
            mlp_ratio=sam.mlp_ratio,
            window=sam.window,
            num_global_layers=len(sam.global_layers),
            out_channels=sam.out_channels,
        ),
        siglip=SiglipShape(
            image_size=siglip.image_size,
            patch_size=siglip.patch_size,
            width=siglip.width,
            layers=siglip.layers,
            ffn=siglip.ffn,
        ),
        language=LanguageShape(
            width=language.width,
            layers=language.layers,
            heads=language.heads,
            kv_heads=language.kv_heads,
            ffn=language.ffn,
            vocab_size=language.vocab_size,
            latent=None if language.mla is None else _latent(language.mla),
            experts=None if language.moe is None else _experts(language.moe),
        ),
        shuffles=config.tiling is not None,
    )


def _latent(config: MlaConfig) -> LatentShape:
    return LatentShape(
        kv_rank=config.kv_rank,
        nope_dim=config.nope_dim,
        rope_dim=config.rope_dim,
        value_dim=config.value_dim,
    )


def _experts(config: MoeConfig) -> ExpertsShape:
    return ExpertsShape(
        experts=config.experts,
        per_token=config.per_token,
        shared=config.shared,
        ffn=config.ffn,
        dense_layers=config.dense_layers,
    )
