"""What a published config.json says of a part, held against our config where shapes cannot show it:
heads, windows, constants of norms and of the rotary embedding.

In: the settings of a published directory, whole or partial (the released 7B gives its language
model's depth, vocabulary and context alone). Out: differences in words. What is not said has the
default of the class that published software reads it with: transformers', or for DeepSeek-VL2 that
of the released code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.sam.configuration_sam import SamVisionConfig
from transformers.models.siglip.configuration_siglip import SiglipVisionConfig

from vltrain.models.config import Activation, LanguageConfig, ModelConfig
from vltrain.models.layouts import DEEPSEEK_LANGUAGE, DEEPSEEK_VL2
from vltrain.models.published_deepseek import balance_differences, language_differences

_CLASSES = {"sam": SamVisionConfig, "siglip": SiglipVisionConfig, "language": LlamaConfig}
_SECTIONS: dict[str, dict[str, str | None]] = {
    "sam": {"sam": "vision_config"},
    "sam_vision_model": {"sam": None},
    "siglip": {"siglip": "vision_config"},
    "siglip_vision_model": {"siglip": None},
    "llama": {"language": None},
    "deepseek_vl": {"siglip": "vision_config", "language": "text_config"},
    "deepseek_vl_hybrid": {
        "sam": "high_res_vision_config",
        "siglip": "vision_config",
        "language": "text_config",
    },
    "multi_modality": {"language": "language_config"},
    **{model_type: {"language": None} for model_type in DEEPSEEK_LANGUAGE},
    DEEPSEEK_VL2: {
        "siglip": "vision_config",
        "adaptor": "projector_config",
        "language": "language_config",
    },
}
"""By model_type: where each part's settings are (None: at the top). The vision towers of
multi_modality are named, not described."""
_COMPARED = {
    "sam": {
        "num_attention_heads": "heads",
        "window_size": "window",
        "global_attn_indexes": "global_layers",
    },
    "siglip": {"num_attention_heads": "heads"},
    "language": {
        "num_attention_heads": "heads",
        "num_key_value_heads": "kv_heads",
        "rms_norm_eps": "norm_eps",
    },
}
_CONSTANTS = {
    "sam": {"hidden_act": "gelu", "layer_norm_eps": 1e-6},
    "siglip": {"layer_norm_eps": 1e-6},
    "language": {"hidden_act": "silu"},
}
"""What the parts compute with, whatever their config. (SigLIP's activation is a choice of ours: its
own config.json has another than DeepSeek-VL runs it with.)"""
_VL2_HEADS = 16
"""Of SigLIP, where a VL2's vision_config does not say."""
_VL2_PROJECTOR: dict[str, Any] = {
    "projector_type": "downsample_mlp_gelu",
    "downsample_ratio": 2,
    "depth": 2,
    "mlp_ratio": 1,
    "token_pooling": False,
}
"""What projector_config must say, or leave out; other models share the model_type."""
_VL2_TILES = {"tile_tag": "2D", "global_view_pos": "head"}
"""The same of the whole config.json."""


def setting_differences(
    settings: Mapping[str, Any], *, part: str, config: ModelConfig
) -> list[str]:
    """Where a published part would compute something else than ``config`` does, in words."""
    model_type = str(settings.get("model_type"))
    sections = _SECTIONS.get(model_type, {})
    if part not in sections:
        return []
    section = sections[part]
    said = settings if section is None else settings.get(section, {})
    try:
        return _differences(said, settings=settings, part=part, config=config)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        return [f"config.json: the settings of {part} are not understood: {error}"]


def training_differences(settings: Mapping[str, Any], *, config: ModelConfig) -> list[str]:
    """Where a published model says that its language model was trained with another loss than
    ``config`` asks for, in words. It is no other model for that."""
    model_type = str(settings.get("model_type"))
    if model_type not in (*DEEPSEEK_LANGUAGE, DEEPSEEK_VL2):
        return []
    section = _SECTIONS[model_type]["language"]
    said = settings if section is None else settings.get(section, {})
    return balance_differences(said, router=config.router)


def _differences(
    said: Mapping[str, Any], *, settings: Mapping[str, Any], part: str, config: ModelConfig
) -> list[str]:
    """said: the part's section of ``settings``."""
    model_type = str(settings["model_type"])
    if part == "language":
        rope = _rope_differences(said, config=config.language)
        if model_type in (*DEEPSEEK_LANGUAGE, DEEPSEEK_VL2):
            own = config.language
            return [*language_differences(said, model_type=model_type, config=own), *rope]
        return [*_class_differences(said, part=part, config=config), *rope]
    if model_type != DEEPSEEK_VL2:
        return _class_differences(said, part=part, config=config)
    if part == "adaptor":
        return [*_fixed(said, _VL2_PROJECTOR), *_fixed(settings, _VL2_TILES)]
    return _vl2_siglip_differences(said, config=config)


def _class_differences(said: Mapping[str, Any], *, part: str, config: ModelConfig) -> list[str]:
    """Against transformers' record of the part, which fills the defaults in."""
    known = {key: value for key, value in said.items() if key != "model_type"}
    found: PretrainedConfig = _CLASSES[part](**known)
    own = getattr(config, part)
    differences = [
        f"config.json: {key} of {part} is {getattr(found, key)}, model.{part}.{field} is "
        f"{getattr(own, field)}"
        for key, field in _COMPARED[part].items()
        if getattr(found, key) != getattr(own, field)
    ]
    return differences + [
        f"config.json: {key} of {part} is {getattr(found, key)}; here it is always {constant}"
        for key, constant in _CONSTANTS[part].items()
        if getattr(found, key) != constant
    ]


def _rope_differences(said: Mapping[str, Any], *, config: LanguageConfig) -> list[str]:
    keys = ("rope_theta", "rope_scaling", "rope_parameters")
    rope: Any = LlamaConfig(**{key: said[key] for key in keys if key in said}).rope_parameters
    if rope.get("rope_type", "default") != "default":
        return [
            f"config.json: the rotary embedding of language is of type {rope['rope_type']!r}; only "
            "the default one is trained here"
        ]
    if rope["rope_theta"] != config.rope_theta:
        return [
            f"config.json: rope_theta of language is {rope['rope_theta']}, "
            f"model.language.rope_theta is {config.rope_theta}"
        ]
    return []


def _vl2_siglip_differences(said: Mapping[str, Any], *, config: ModelConfig) -> list[str]:
    assert config.siglip is not None, "the part is asked for"
    heads, activation = said.get("heads", _VL2_HEADS), config.siglip.activation
    differences = []
    if heads != config.siglip.heads:
        differences.append(
            f"config.json: heads of siglip is {heads}, model.siglip.heads is {config.siglip.heads}"
        )
    if activation is not Activation.gelu_tanh:
        differences.append(
            f"a DeepSeek-VL2's SigLIP computes with gelu_tanh, model.siglip.activation is "
            f"{activation.value}"
        )
    return differences


def _fixed(said: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    return [
        f"config.json: {key} is {said[key]!r}, expected {value!r}"
        for key, value in expected.items()
        if key in said and said[key] != value
    ]
