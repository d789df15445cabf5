"""Our config in transformers' words: the one place that knows how a published config.json says it.

In: ``ModelConfig``. Out: ``DeepseekVLHybridConfig`` or ``DeepseekVLConfig``, with the values that
the released models have where the classes' defaults differ: an untied head (the default ties it),
exact GELU in SigLIP.
"""

from __future__ import annotations

from typing import Any

from transformers.models.deepseek_vl.configuration_deepseek_vl import DeepseekVLConfig
from transformers.models.deepseek_vl_hybrid.configuration_deepseek_vl_hybrid import (
    DeepseekVLHybridConfig,
)
from transformers.models.llama.configuration_llama import LlamaConfig

from vltrain.models.config import LanguageConfig, ModelConfig
from vltrain.models.vision import sam_vision_config, siglip_vision_config


def decoder_fields(config: LanguageConfig, *, attention: str) -> dict[str, Any]:
    """What transformers' records of Llama and of DeepSeek-V3 have in common; ``attention`` is its
    name of the back end."""
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.ffn,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "initializer_range": config.init_std,
        "tie_word_embeddings": False,
        "attn_implementation": attention,
    }


def llama_config(config: LanguageConfig, *, attention: str = "sdpa") -> LlamaConfig:
    """transformers' record of the language model; ``attention`` is its name of the back end."""
    return LlamaConfig(**decoder_fields(config, attention=attention))


def hybrid_config(config: ModelConfig) -> DeepseekVLHybridConfig:
    """transformers' record of a model with SAM and SigLIP."""
    assert config.sam is not None, "the hybrid class has a SAM"
    assert config.siglip is not None, "and a SigLIP"
    return DeepseekVLHybridConfig(
        text_config=llama_config(config.language),
        vision_config=siglip_vision_config(config.siglip),
        high_res_vision_config=sam_vision_config(config.sam),
        image_token_id=config.image_token_id,
        tie_word_embeddings=False,
    )


def siglip_only_config(config: ModelConfig) -> DeepseekVLConfig:
    """transformers' record of a model with SigLIP alone."""
    assert config.siglip is not None, "that class has a SigLIP"
    return DeepseekVLConfig(
        text_config=llama_config(config.language),
        vision_config=siglip_vision_config(config.siglip),
        image_token_id=config.image_token_id,
        tie_word_embeddings=False,
    )
