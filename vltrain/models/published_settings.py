"""What a published config.json says of a part, held against our config where shapes cannot show it:
heads, windows, constants of norms and of the rotary embedding.

In: the settings of a published directory, whole or partial (the released 7B gives its language
model's depth, vocabulary and context alone). Out: differences in words. What is not said has
transformers' default, as published software reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.sam.configuration_sam import SamVisionConfig
from transformers.models.siglip.configuration_siglip import SiglipVisionConfig

from vltrain.models.config import ModelConfig

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


def setting_differences(
    settings: Mapping[str, Any], *, part: str, config: ModelConfig
) -> list[str]:
    """Where a published part would compute something else than ``config`` does, in words."""
    try:
        found = _part_settings(settings, part=part)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        return [f"config.json: the settings of {part} are not understood: {error}"]
    if found is None:
        return []
    own = getattr(config, part)
    differences = [
        f"config.json: {key} of {part} is {getattr(found, key)}, model.{part}.{field} is "
        f"{getattr(own, field)}"
        for key, field in _COMPARED[part].items()
        if getattr(found, key) != getattr(own, field)
    ]
    differences += [
        f"config.json: {key} of {part} is {getattr(found, key)}; here it is always {constant}"
        for key, constant in _CONSTANTS[part].items()
        if getattr(found, key) != constant
    ]
    if part == "language":
        rope = found.rope_parameters
        if rope.get("rope_type", "default") != "default":
            differences.append(
                f"config.json: the rotary embedding of language is of type {rope['rope_type']!r}; "
                "only the default one is trained here"
            )
        elif rope["rope_theta"] != config.language.rope_theta:
            differences.append(
                f"config.json: rope_theta of language is {rope['rope_theta']}, "
                f"model.language.rope_theta is {config.language.rope_theta}"
            )
    return differences


def _part_settings(settings: Mapping[str, Any], *, part: str) -> PretrainedConfig | None:
    """transformers' record of a part, defaults filled in; None where nothing describes it."""
    sections = _SECTIONS.get(str(settings.get("model_type")), {})
    if part not in sections:
        return None
    section = sections[part]
    said = settings if section is None else settings.get(section, {})
    return _CLASSES[part](**{key: value for key, value in said.items() if key != "model_type"})
