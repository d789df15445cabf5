"""The model's sizes as the plain numbers that counting needs (models and metrics do not know each
other)."""

from __future__ import annotations

from vltrain.metrics.throughput import LanguageShape, ModelShape, SamShape, SiglipShape
from vltrain.models.config import ModelConfig


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
        ),
    )
