"""The module that the engine trains: tokens and pictures to a loss sum.

In: the tensors of a ``MicroBatch`` and ``FrozenTowers.encode``'s features. Out: the sum of token
losses.

The one rule for gradients and collectives lives here: every micro-batch, on every rank, runs the
same modules in the same order (embed, trained towers, adaptor, layers, head), so that each
trainable parameter gets a gradient, zero if need be. A batch without pictures runs one blank
picture's features through the trained towers and the adaptor and adds its sum times zero. Without
this, ZeRO 1-3 fail or hang where ranks differ in modality, and ZeRO-3 re-applies the last
picture's gradient in silence. Cost: one picture's adaptor pass per text micro-batch (and one
SigLIP pass where SigLIP trains).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vltrain.models.adaptor import AnyAdaptor
from vltrain.models.fusion import fuse
from vltrain.models.language import LanguageModel, segment_mask
from vltrain.models.moe_language import MoeLanguageModel
from vltrain.models.vision import TOWERS


class VisionLanguageModel(nn.Module):
    """Parts: ``language``, ``adaptor``, and ``sam``/``siglip`` where they train."""

    def __init__(
        self,
        *,
        language: LanguageModel | MoeLanguageModel,
        adaptor: AnyAdaptor,
        towers: dict[str, nn.Module],
    ) -> None:
        super().__init__()
        self.language = language
        for part, tower in towers.items():
            self.add_module(part, tower)
        self.adaptor = adaptor

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        segments: Tensor,
        targets: Tensor,
        image_positions: Tensor,
        features: dict[str, Tensor],
    ) -> Tensor:
        """The sum of token losses, scalar fp32. Shapes as in ``MicroBatch`` and
        ``FrozenTowers.encode``."""
        hidden = self.hidden(ids, positions, segments, image_positions, features)
        return self.language.lm_head(hidden, targets)

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor,
        segments: Tensor,
        image_positions: Tensor,
        features: dict[str, Tensor],
    ) -> Tensor:
        """Hidden states of every position, (B, T, width)."""
        embeds = self.embed(ids, image_positions, features)
        return self.language(embeds, positions, segment_mask(segments))

    def embed(self, ids: Tensor, image_positions: Tensor, features: dict[str, Tensor]) -> Tensor:
        """Token embeddings with the pictures in their places, (B, T, width)."""
        embeds = self.language.embed(ids)
        blank = all(len(feature) == 0 for feature in features.values())
        if blank:
            features = {name: f.new_zeros((1, *f.shape[1:])) for name, f in features.items()}
        for part in TOWERS:
            if f"{part}_pixels" in features:
                features = features | self.get_submodule(part)(features[f"{part}_pixels"])
        images = self.adaptor(features)
        if blank:
            return embeds + images.sum().to(embeds.dtype) * 0.0
        return fuse(embeds, images=images, image_positions=image_positions)

    def row_losses(
        self,
        ids: Tensor,
        positions: Tensor,
        segments: Tensor,
        targets: Tensor,
        image_positions: Tensor,
        features: dict[str, Tensor],
    ) -> Tensor:
        """The sum of token losses of each row, fp32 (B,): for evaluation, one candidate per row."""
        hidden = self.hidden(ids, positions, segments, image_positions, features)
        rows = [
            self.language.lm_head(row, labels) for row, labels in zip(hidden, targets, strict=True)
        ]
        return torch.stack(rows)
