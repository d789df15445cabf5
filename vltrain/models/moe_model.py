"""The module that the engine trains where the language model has experts.

As ``VisionLanguageModel``, and two things more in training: the experts' loads are counted into
``language.balance``, and the balance penalty gets its gradient. The penalty's value is left out of
the loss (as in the released code): losses of all models stay comparable, and the logs show balance
by itself.

The loss is a sum over label tokens, which the trainer divides by their number in the whole step. A
sequence's penalty is therefore counted once for each of its label tokens: the step's penalty is the
mean over sequences weighted by label tokens, the same however the sequences lie on ranks and in
micro-batches. (A sequence is a row: where a stage packs, a pack, as the released code has it.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vltrain.batch import IGNORE
from vltrain.models.adaptor import AnyAdaptor
from vltrain.models.language import segment_mask
from vltrain.models.model import VisionLanguageModel
from vltrain.models.moe_language import MoeLanguageModel


class MoeVisionLanguageModel(VisionLanguageModel):
    """Parts as in ``VisionLanguageModel``. penalty_weight: of the balance penalty in the loss."""

    language: MoeLanguageModel

    def __init__(
        self,
        *,
        language: MoeLanguageModel,
        adaptor: AnyAdaptor,
        towers: dict[str, nn.Module],
        penalty_weight: float,
    ) -> None:
        super().__init__(language=language, adaptor=adaptor, towers=towers)
        self.penalty_weight = penalty_weight

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        segments: Tensor,
        targets: Tensor,
        image_positions: Tensor,
        features: dict[str, Tensor],
    ) -> Tensor:
        """The sum of token losses, scalar fp32; its gradient is that of the penalty too."""
        embeds = self.embed(ids, image_positions, features)
        hidden, penalties, loads = self.language.routed(
            embeds, positions=positions, mask=segment_mask(segments), real=segments > 0
        )
        if torch.is_grad_enabled():
            self.language.balance.count(loads)
        loss = self.language.lm_head(hidden, targets)
        labels = (targets != IGNORE).sum(dim=1).to(penalties.device, non_blocking=True)
        penalty = self.penalty_weight * (penalties * labels).sum()
        return loss + (penalty - penalty.detach())
