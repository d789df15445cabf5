"""The export in the shape of the original release: its key set, its config.json, its processor's
settings.

The released key set has tensors that no forward pass reads (SigLIP's pooling head, a norm after
each tower), so they are always written. The released code names its towers and knows two of them,
SAM-B at 1024 and SigLIP-L at 384; towers of other sizes get a name of the same kind, which says
what they are and which that code refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from vltrain.models.check import refuse_unpublished
from vltrain.models.config import ModelConfig, SamConfig, SiglipConfig
from vltrain.models.export_tokens import ExportTokens, write_json
from vltrain.models.layouts import HYBRID_TOWER, ORIGINAL, ORIGINAL_HYBRID, SIGLIP_TOWER

_IGNORED_LABEL = -100
_SHORTEST_SIDE = 14
"""Pixels of a side that the released processor never scales below."""


class OriginalRelease:
    """See the module's docstring."""

    def check(self, config: ModelConfig) -> None:
        """Raises ConfigError for a model that this format has no place for."""
        refuse_unpublished(config)

    def layout(self, config: ModelConfig) -> str:
        return ORIGINAL if config.sam is None else ORIGINAL_HYBRID

    def unused(
        self, config: ModelConfig, *, kept: Mapping[str, tuple[int, ...]]
    ) -> dict[str, tuple[int, ...]]:
        """The released model's unused tensors, whether they were stored or not."""
        assert config.siglip is not None, "every released model has a SigLIP"
        shapes = pooling_head(config.siglip)
        if config.sam is not None:
            shapes |= _affine("sam.unused_norm", (_high_width(config.sam),))
            shapes |= _affine("siglip.unused_norm", (config.siglip.width,))
        return shapes

    def settings(
        self,
        config: ModelConfig,
        *,
        tokens: ExportTokens,
        dtype: torch.dtype,
        unused: Mapping[str, tuple[int, ...]],
    ) -> dict[str, object]:
        """config.json."""
        torch_dtype = str(dtype).removeprefix("torch.")
        return {
            "model_type": "multi_modality",
            "architectures": ["MultiModalityCausalLM"],
            "torch_dtype": torch_dtype,
            "vision_config": _vision(config),
            "aligner_config": _aligner(config),
            "language_config": {
                "model_type": "llama",
                "hidden_size": config.language.width,
                "num_hidden_layers": config.language.layers,
                "num_attention_heads": config.language.heads,
                "num_key_value_heads": config.language.kv_heads,
                "intermediate_size": config.language.ffn,
                "vocab_size": config.language.vocab_size,
                "max_position_embeddings": config.language.max_positions,
                "rms_norm_eps": config.language.norm_eps,
                "rope_theta": config.language.rope_theta,
                "bos_token_id": tokens.bos_id,
                "eos_token_id": tokens.eos_id,
                "tie_word_embeddings": False,
                "torch_dtype": torch_dtype,
            },
        }

    def write_processor(
        self, directory: Path, *, config: ModelConfig, tokens: ExportTokens
    ) -> None:
        """The tokenizer, and the settings of the released image and chat processors."""
        tokens.write_as_released(directory, pad_token=tokens.eos_token)
        mean, std = config.siglip_mean, config.siglip_std
        if config.sam is not None:  # each tower normalises; the mean here is the padding's
            mean, std = config.sam_mean, config.sam_std
        write_json(
            directory / "preprocessor_config.json",
            {
                "image_processor_type": "VLMImageProcessor",
                "processor_class": "VLChatProcessor",
                "image_size": config.image_side,
                "min_size": _SHORTEST_SIDE,
                "image_mean": list(mean),
                "image_std": list(std),
                "do_normalize": config.sam is None,
                "rescale_factor": 1 / 255,
                "background_color": list(config.pad_color),
            },
        )
        write_json(
            directory / "processor_config.json",
            {
                "processor_class": "VLChatProcessor",
                "image_tag": tokens.image_token,
                "num_image_tokens": config.tokens_per_image,
                "add_special_token": False,
                "sft_format": "deepseek",
                "mask_prompt": True,
                "ignore_id": _IGNORED_LABEL,
                "system_prompt": tokens.system_prompt.strip(),
            },
        )


def pooling_head(siglip: SiglipConfig) -> dict[str, tuple[int, ...]]:
    """SigLIP's pooling head: every release stores it, and none reads it."""
    width, ffn = siglip.width, siglip.ffn
    shapes: dict[str, tuple[int, ...]] = {"siglip.head.probe": (1, 1, width)}
    for part in ("attention.q", "attention.k", "attention.v", "attention.out_proj"):
        shapes |= _affine(f"siglip.head.{part}", (width, width))
    shapes |= _affine("siglip.head.layernorm", (width,))
    shapes |= _affine("siglip.head.mlp.fc1", (ffn, width))
    shapes |= _affine("siglip.head.mlp.fc2", (width, ffn))
    return shapes


def _vision(config: ModelConfig) -> dict[str, object]:
    assert config.siglip is not None, "every released model has a SigLIP"
    siglip = {
        "model_name": _siglip_name(config.siglip),
        "image_size": config.siglip.image_size,
        "select_feature": "same",
        "select_layer": -1,
    }
    if config.sam is None:
        return {"model_type": "vision", "cls": SIGLIP_TOWER, "params": siglip}
    high_width = _high_width(config.sam)
    high = {
        "model_name": _sam_name(config.sam),
        "image_size": config.sam.image_size,
        "output_dim": high_width,
        "pixel_mean": list(config.sam_mean),
        "pixel_std": list(config.sam_std),
        "select_feature": "same",
        "select_layer": -1,
        "ckpt_path": "",
    }
    low = {
        **siglip,
        "output_dim": config.siglip.width,
        "pixel_mean": list(config.siglip_mean),
        "pixel_std": list(config.siglip_std),
        "ckpt_path": "",
    }
    params = {
        "concat_type": "tuple",
        "freeze_high": True,
        "freeze_low": True,
        "high_res_cfg": high,
        "low_res_cfg": low,
        "width": [high_width, config.siglip.width],
    }
    return {"model_type": "vision", "cls": HYBRID_TOWER, "params": params}


def _aligner(config: ModelConfig) -> dict[str, object]:
    assert config.siglip is not None, "every released model has a SigLIP"
    kind = "mlp_gelu" if config.sam is None else "low_high_hybrid_split_mlp_gelu"
    params = {
        "depth": 2,
        "input_dim": config.siglip.width,
        "n_embed": config.language.width,
        "projector_type": kind,
    }
    return {"model_type": "aligner", "cls": "MlpProjector", "params": params}


def _high_width(sam: SamConfig) -> int:
    """Channels after the two convolutions, each of which doubles them."""
    return 4 * sam.out_channels


def _sam_name(sam: SamConfig) -> str:
    if sam == SamConfig():
        return "sam_b_downsample"
    return f"sam_width{sam.width}_layers{sam.layers}_patch{sam.patch_size}_downsample"


def _siglip_name(siglip: SiglipConfig) -> str:
    size = "large" if siglip == SiglipConfig() else f"width{siglip.width}_layers{siglip.layers}"
    return f"siglip_{size}_patch{siglip.patch_size}_{siglip.image_size}"


def _affine(name: str, weight: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}
