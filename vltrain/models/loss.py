"""Token loss where labels are, in chunks; the full (tokens x vocabulary) matrix never exists.

In: hidden states and targets (already shifted). Out: the *sum* of token cross-entropies, fp32;
the trainer divides by the label tokens of the whole global step. Memory: the logits of one chunk
(``chunk_tokens`` x vocabulary, fp32), in the forward and again in the backward pass, which
recomputes them (2 H T_labels FLOPs more). One module call per micro-batch whatever the number of
chunks: under ZeRO-3 every rank gathers the head once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vltrain.batch import IGNORE


class LossHead(nn.Linear):
    """The language model's output layer (``lm_head``): logits, or the loss without them."""

    def __init__(self, width: int, vocab_size: int, *, chunk_tokens: int) -> None:
        super().__init__(width, vocab_size, bias=False)
        self.chunk_tokens = chunk_tokens

    def forward(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        """hidden (..., width) -> fp32 logits (..., vocabulary), or with ``targets`` (...) int64,
        IGNORE where nothing is learned, the scalar fp32 loss sum.

        Without any label the sum is zero and still connected to ``hidden`` and the weight, so
        that each of them gets a (zero) gradient. Targets on the CPU spare the accelerator a
        synchronisation.
        """
        if targets is None:
            return F.linear(hidden, self.weight).float()
        flat_targets = targets.flatten()
        rows = (flat_targets != IGNORE).nonzero().squeeze(1)
        if len(rows) == 0:
            return F.linear(hidden.flatten(0, -2)[:1], self.weight).float().sum() * 0.0
        flat_targets = flat_targets[rows].to(hidden.device, non_blocking=True)
        states = hidden.flatten(0, -2)[rows.to(hidden.device, non_blocking=True)]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for chunk, labels in zip(
            states.split(self.chunk_tokens), flat_targets.split(self.chunk_tokens), strict=True
        ):
            total = total + checkpoint(
                _loss_sum, chunk, self.weight, labels, use_reentrant=False, preserve_rng_state=False
            )
        return total


def _loss_sum(states: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(states, weight).float(), labels, reduction="sum")
