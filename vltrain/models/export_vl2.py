"""The export in the shape of DeepSeek-VL2's release: its key set, its config.json, the settings of
its processor.

The released key set has SigLIP's pooling head, which no forward pass reads, so it is always
written; experts are written one by one. config.json is written out in full: the released files
leave out what is the default of the released code, which other software does not share, and name no
``architectures``, which public engines choose the model by. There is no chat template among the
released files: the released processor, and the engines', build the conversation themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer

from vltrain.models.config import ModelConfig, SiglipConfig
from vltrain.models.export_original import pooling_head
from vltrain.models.export_tokens import ExportTokens, write_json
from vltrain.models.layouts import DEEPSEEK_VL2
from vltrain.models.published_deepseek import language_settings
from vltrain.models.vl2_check import refuse_other_than_vl2
from vltrain.processing.tiling import candidate_grids

PAD_TOKEN = "<｜▁pad▁｜>"
"""Of DeepSeek's vocabularies since V2; the end token pads where there is none."""
_IGNORED_LABEL = -100
_DIGITS = 4
"""Decimals of the released mlp_ratio."""


class OriginalReleaseVl2:
    """See the module's docstring."""

    def check(self, config: ModelConfig) -> None:
        """Raises ConfigError for a model that this format has no place for."""
        refuse_other_than_vl2(config)

    def layout(self, config: ModelConfig) -> str:
        return DEEPSEEK_VL2

    def unused(
        self, config: ModelConfig, *, kept: Mapping[str, tuple[int, ...]]
    ) -> dict[str, tuple[int, ...]]:
        """The released model's unused tensors, whether they were stored or not."""
        assert config.siglip is not None, "tiles are seen by SigLIP"
        return pooling_head(config.siglip)

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
        assert config.siglip is not None, "tiles are seen by SigLIP"
        return {
            "model_type": DEEPSEEK_VL2,
            "architectures": ["DeepseekVLV2ForCausalLM"],
            "torch_dtype": torch_dtype,
            "tile_tag": "2D",
            "global_view_pos": "head",
            "candidate_resolutions": _resolutions(config),
            "vision_config": _vision(config.siglip),
            "projector_config": {
                "model_type": "mlp_projector",
                "projector_type": "downsample_mlp_gelu",
                "input_dim": config.siglip.width,
                "n_embed": config.language.width,
                "depth": 2,
                "mlp_ratio": 1,
                "downsample_ratio": 2,
            },
            "language_config": {
                **language_settings(config.language),
                "bos_token_id": tokens.bos_id,
                "eos_token_id": tokens.eos_id,
                "aux_loss_alpha": config.router.penalty_weight,
                "seq_aux": True,
                "model_type": "deepseek_v2",
                "architectures": ["DeepseekV2ForCausalLM"],
                "torch_dtype": torch_dtype,
            },
        }

    def write_processor(
        self, directory: Path, *, config: ModelConfig, tokens: ExportTokens
    ) -> None:
        """The tokenizer, and the settings of the released processor."""
        assert config.siglip is not None, "tiles are seen by SigLIP"
        has_pad = Tokenizer.from_file(str(tokens.file)).token_to_id(PAD_TOKEN) is not None
        pad_token = PAD_TOKEN if has_pad else tokens.eos_token
        tokens.write_as_released(directory, pad_token=pad_token)
        write_json(
            directory / "processor_config.json",
            {
                "processor_class": "DeepseekVLV2Processor",
                "candidate_resolutions": _resolutions(config),
                "patch_size": config.siglip.patch_size,
                "downsample_ratio": 2,
                "image_mean": list(config.siglip_mean),
                "image_std": list(config.siglip_std),
                "normalize": True,
                "image_token": tokens.image_token,
                "pad_token": pad_token,
                "add_special_token": False,
                "sft_format": "deepseek",
                "mask_prompt": True,
                "ignore_id": _IGNORED_LABEL,
            },
        )


def _resolutions(config: ModelConfig) -> list[list[int]]:
    """Width and height of every grid that the model was trained with, in the released order, which
    decides between equals."""
    assert config.tiling is not None, "a model with tiles"
    side = config.image_side
    grids = candidate_grids(config.tiling.max_tiles)
    return [[grid.columns * side, grid.rows * side] for grid in grids]


def _vision(siglip: SiglipConfig) -> dict[str, object]:
    released = (siglip.width, siglip.layers) == (1152, 27)
    size = "so400m" if released else f"width{siglip.width}_layers{siglip.layers}"
    return {
        "model_type": "vision",
        "model_name": f"siglip_{size}_patch{siglip.patch_size}_{siglip.image_size}",
        "image_size": siglip.image_size,
        "patch_size": siglip.patch_size,
        "width": siglip.width,
        "layers": siglip.layers,
        "heads": siglip.heads,
        "mlp_ratio": mlp_ratio(siglip),
    }


def mlp_ratio(siglip: SiglipConfig) -> float:
    """What the released code multiplies the width with to have the MLP's, cutting off the
    fraction (3.7362 for 1152 and 4304)."""
    steps = math.ceil(10**_DIGITS * siglip.ffn / siglip.width)
    while int(siglip.width * (steps / 10**_DIGITS)) < siglip.ffn:
        steps += 1  # a product of floats may lie below the whole number
    return steps / 10**_DIGITS
