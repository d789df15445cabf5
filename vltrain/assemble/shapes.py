"""The model's sizes as the plain numbers that counting needs (models and metrics do not know each
other)."""

from __future__ import annotations

from vltrain.metrics.throughput import LanguageShape, ModelShape, SamShape, SiglipShape, VitShape
from vltrain.models.config import ModelConfig, SiglipConfig, VitConfig


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
        siglip=None if siglip is None else _siglip(siglip),
        vit=None if config.vit is None else _vit(config.vit),
        grid=config.visual_grid,
        adaptor=config.adaptor.kind.value,
        language=LanguageShape(
            width=language.width,
            layers=language.layers,
            heads=language.heads,
            kv_heads=language.kv_heads,
            ffn=language.ffn,
            vocab_size=language.vocab_size,
        ),
    )


def _siglip(config: SiglipConfig) -> SiglipShape:
    return SiglipShape(
        image_size=config.image_size,
        patch_size=config.patch_size,
        width=config.width,
        layers=config.layers,
        ffn=config.ffn,
    )


def _vit(config: VitConfig) -> VitShape:
    from vltrain.models.vit import probe  # here: it builds the class, which only such a model needs

    facts = probe(config)
    return VitShape(width=facts.width, forward=facts.flops)
