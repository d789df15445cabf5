"""One part as a published directory of its own, as SAM, SigLIP and Llama checkpoints come.

In: config and the part's state under our full names. Out: config.json and model.safetensors that
transformers' own classes load, and so does ``weights.load_weights``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig

from vltrain.errors import ConfigError
from vltrain.models.config import ModelConfig
from vltrain.models.layouts import published_tensors
from vltrain.models.published import llama_config
from vltrain.models.vision import sam_vision_config, siglip_vision_config


def export_part(
    directory: str | Path, *, config: ModelConfig, part: str, state: Mapping[str, Tensor]
) -> None:
    """Write ``part`` (sam, siglip or language). Raises ConfigError for a part without such a
    layout."""
    record = _record(config, part=part)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    renamed = {
        stored.theirs: state[stored.ours[0]].detach().cpu().contiguous()
        for stored in published_tensors(state, layout=record.model_type)
    }
    save_file(renamed, directory / "model.safetensors", metadata={"format": "pt"})
    record.save_pretrained(directory)


def _record(config: ModelConfig, *, part: str) -> PretrainedConfig:
    if part == "sam" and config.sam is not None:
        return sam_vision_config(config.sam)
    if part == "siglip":
        return siglip_vision_config(config.siglip)
    if part == "language":
        return llama_config(config.language)
    raise ConfigError(
        f"part {part!r} has no published layout of its own; choose sam, siglip or language"
    )
