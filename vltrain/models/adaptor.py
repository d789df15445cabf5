"""Vision features to the language model's width: what stage 1 trains.

In: the towers' features. Out: (n, tokens, width) embeddings, in reading order. The part
``adaptor`` is the paper's "vision-language adaptor" (section 3.1) with what the released code
needs beside it (facts 1.2, 1.8): the two stride-2 convolutions, the second neck on SAM's first
global state, the scalar alpha that adds it, and the aligner MLP. SAM's own neck joins it with
``train_sam_neck``, as the released code would train it.

Parts are transformers' own, so published names and shapes fit; the forward is ours because the
released code interpolates in float32, where transformers' stays in bf16 (0.5 % apart).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.deepseek_vl.modeling_deepseek_vl import DeepseekVLAligner
from transformers.models.deepseek_vl_hybrid.modeling_deepseek_vl_hybrid import (
    DeepseekVLHybridAligner,
    DeepseekVLSamVisionNeck,
    DeepseekVLSamVisionProj,
)
from transformers.models.sam.modeling_sam import SamVisionNeck

from vltrain.models.config import AdaptorKind, ModelConfig
from vltrain.models.published import hybrid_config, siglip_only_config
from vltrain.models.tile_adaptor import TileAdaptor
from vltrain.models.vision import sam_vision_config


class HybridAdaptor(nn.Module):
    """SAM and SigLIP features side by side (7B): two projections, concatenated high first, GELU,
    linear."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.sam is not None, "the hybrid adaptor reads SAM"
        sam = sam_vision_config(config.sam)
        self.grid = config.siglip.image_size // config.siglip.patch_size
        self.sam_neck = SamVisionNeck(sam) if config.adaptor.train_sam_neck else None
        self.neck = DeepseekVLSamVisionNeck(sam)
        self.downsample = DeepseekVLSamVisionProj(sam, output_size=self.grid)
        self.alpha = nn.Parameter(torch.zeros(1))
        self.aligner = DeepseekVLHybridAligner(hybrid_config(config))

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """sam_last (n, C, g, g), sam_first_global (n, g, g, w), siglip (n, tokens, w)
        -> (n, tokens, language width)."""
        dtype = self.alpha.dtype
        last = features["sam_last"].to(dtype)
        if self.sam_neck is not None:
            last = self.sam_neck(last)
        second = self.neck(features["sam_first_global"].to(dtype))
        high = self._downsample(last) + self._downsample(second) * self.alpha
        return self.aligner(features["siglip"].to(dtype), high.flatten(2).transpose(1, 2))

    def _downsample(self, maps: Tensor) -> Tensor:
        """(n, C, g, g) -> (n, 4 C, grid, grid)."""
        side = 4 * self.grid
        resized = F.interpolate(
            maps.float(), size=(side, side), mode="bilinear", align_corners=False
        ).to(maps.dtype)
        return self.downsample.conv2(self.downsample.conv1(resized))


class MlpAdaptor(nn.Module):
    """SigLIP features alone (1.3B): linear, GELU, linear."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.aligner = DeepseekVLAligner(siglip_only_config(config))

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """siglip (n, tokens, w) -> (n, tokens, language width)."""
        return self.aligner(features["siglip"].to(self.aligner.linear1.weight.dtype))


AnyAdaptor = HybridAdaptor | MlpAdaptor | TileAdaptor


def build_adaptor(config: ModelConfig) -> AnyAdaptor:
    """The adaptor that ``adaptor.kind`` names (``check_model`` has refused what does not fit)."""
    if config.adaptor.kind == AdaptorKind.hybrid_split:
        return HybridAdaptor(config)
    if config.adaptor.kind == AdaptorKind.tiles:
        return TileAdaptor(config.siglip, width=config.language.width)
    return MlpAdaptor(config)
