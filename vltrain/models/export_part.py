"""One part as a published directory of its own, as SAM, SigLIP, Llama and DeepSeek checkpoints
come.

In: config and the part's state under our full names. Out: config.json and model.safetensors that
transformers' own classes load (but for plain attention with experts, for which it has none), and so
does ``weights.load_weights``. Memory: the part, and its experts a second time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig

from vltrain.errors import ConfigError
from vltrain.models.config import ModelConfig
from vltrain.models.layouts import published_tensors, stored_tensor
from vltrain.models.moe_config import Selection
from vltrain.models.published import llama_config
from vltrain.models.published_deepseek import language_settings
from vltrain.models.vision import sam_vision_config, siglip_vision_config


def export_part(
    directory: str | Path, *, config: ModelConfig, part: str, state: Mapping[str, Tensor]
) -> None:
    """Write ``part`` (sam, siglip or language). Raises ConfigError for a part without such a
    layout."""
    settings = _settings(config, part=part)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    renamed = {
        stored.theirs: stored_tensor(stored, state.__getitem__).detach().cpu().contiguous()
        for stored in published_tensors(shapes, layout=str(settings["model_type"]))
    }
    save_file(renamed, directory / "model.safetensors", metadata={"format": "pt"})
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")


def _settings(config: ModelConfig, *, part: str) -> dict[str, Any]:
    """config.json."""
    if part == "language" and config.language.moe is not None:
        return _with_experts(config)
    return json.loads(_record(config, part=part).to_json_string())


def _with_experts(config: ModelConfig) -> dict[str, Any]:
    """transformers' V3 chooses experts with corrections, its V2 without; DeepSeekMoE has plain
    attention."""
    language = config.language
    assert language.moe is not None, "a language model with experts"
    corrects = language.moe.selection is Selection.noaux_tc
    kind = "deepseek_v3" if corrects else "deepseek_v2"
    model_type = "deepseek" if language.mla is None else kind
    return {"model_type": model_type, **language_settings(language)}


def _record(config: ModelConfig, *, part: str) -> PretrainedConfig:
    if part == "sam" and config.sam is not None:
        return sam_vision_config(config.sam)
    if part == "siglip" and config.siglip is not None:
        return siglip_vision_config(config.siglip)
    if part == "language":
        return llama_config(config.language)
    raise ConfigError(
        f"part {part!r} has no published layout of its own; choose sam, siglip or language"
    )
