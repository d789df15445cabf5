"""Vision features to the language model's width: what stage 1 trains.

In: the towers' features. Out: (n, tokens, width) embeddings, in reading order. The part
``adaptor`` is the paper's "vision-language adaptor" (section 3.1): the aligner MLP, and where there
is a SAM what the released code needs beside it (facts 1.2, 1.8): the two stride-2 convolutions, the
second neck on SAM's first global state, and the scalar alpha that adds it. SAM's own neck joins
with ``train_sam_neck``, as the released code would train it.

SAM's parts are transformers' own, so published names and shapes fit; the forward is ours because
the released code interpolates in float32, where transformers' stays in bf16 (0.5 % apart).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.deepseek_vl_hybrid.modeling_deepseek_vl_hybrid import (
    DeepseekVLSamVisionNeck,
    DeepseekVLSamVisionProj,
)
from transformers.models.sam.modeling_sam import SamVisionNeck

from vltrain.models.aligner import build_aligner
from vltrain.models.config import AdaptorKind, ModelConfig
from vltrain.models.tile_adaptor import TileAdaptor
from vltrain.models.vision import sam_vision_config
from vltrain.models.vit import probe


class Adaptor(nn.Module):
    """Towers to visual tokens. ``recompute``: how its activations are kept while it trains."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.towers = config.towers
        self.grid = config.visual_grid
        self.recompute = config.activation_checkpointing.adaptor
        if config.sam is not None:
            sam = sam_vision_config(config.sam)
            self.sam_neck = SamVisionNeck(sam) if config.adaptor.train_sam_neck else None
            self.neck = DeepseekVLSamVisionNeck(sam)
            self.downsample = DeepseekVLSamVisionProj(sam, output_size=self.grid)
            self.alpha = nn.Parameter(torch.zeros(1))
        self.aligner = build_aligner(
            config.adaptor.kind,
            widths=[_width(config, tower=tower) for tower in self.towers],
            out=config.language.width,
            grid=self.grid,
        )

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """As the towers give them: siglip and vit (n, tokens, w); sam_last (n, C, g, g) and
        sam_first_global (n, g, g, w) -> (n, tokens, language width)."""
        dtype = next(self.aligner.parameters()).dtype
        features = {name: feature.to(dtype) for name, feature in features.items()}
        return self.aligner(
            [
                self._tokens_of_sam(features) if tower == "sam" else features[tower]
                for tower in self.towers
            ]
        )

    def _tokens_of_sam(self, features: dict[str, Tensor]) -> Tensor:
        """(n, grid * grid, 4 C)."""
        last = features["sam_last"]
        if self.sam_neck is not None:
            last = self.sam_neck(last)
        second = self.neck(features["sam_first_global"])
        high = self._downsample(last) + self._downsample(second) * self.alpha
        return high.flatten(2).transpose(1, 2)

    def _downsample(self, maps: Tensor) -> Tensor:
        """(n, C, g, g) -> (n, 4 C, grid, grid)."""
        side = 4 * self.grid
        resized = F.interpolate(
            maps.float(), size=(side, side), mode="bilinear", align_corners=False
        ).to(maps.dtype)
        return self.downsample.conv2(self.downsample.conv1(resized))


def build_adaptor(config: ModelConfig) -> Adaptor | TileAdaptor:
    """The adaptor that ``adaptor.kind`` names (``check_model`` has refused what does not fit)."""
    if config.adaptor.kind is AdaptorKind.tiles:
        return TileAdaptor(config)
    return Adaptor(config)


def _width(config: ModelConfig, *, tower: str) -> int:
    """Channels of one visual token as the tower's branch gives it."""
    if tower == "sam":
        assert config.sam is not None
        return 4 * config.sam.out_channels
    if tower == "vit":
        assert config.vit is not None
        return probe(config.vit).width
    assert config.siglip is not None
    return config.siglip.width
