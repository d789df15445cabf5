"""The router of a mixture of experts: which experts see a token, with what weight, and how evenly.

In: hidden states. Out: experts and weights of each token, and the scores that balance is judged by.
transformers' routers are not used, because they ignore in silence what decides here:
``norm_topk_prob`` and the scoring of DeepSeek-V2's, any choice but sigmoid in V3's.

Balance has two ways, both only over real tokens (padding would be counted as load otherwise):

- ``balance_penalty``: DeepSeek's sequence-level auxiliary loss, through the scores alone.
- a correction added to the scores when experts are *chosen* (``noaux_tc``), which moves by a fixed
  step against the load and is no matter of gradients: ``vltrain.models.router_balance``.

Everything is computed in float32, also under autocast: a rounded score chooses another expert.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vltrain.models.moe_config import MoeConfig, Scoring


class Router(nn.Module):
    """Scores of all experts for each token, and the choice (published name: ``mlp.gate``)."""

    def __init__(self, config: MoeConfig, *, width: int) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.experts, width))

    def forward(self, states: Tensor, correction: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """states (..., width), correction fp32 (experts,) or None -> experts int64 (..., k), their
        weights fp32 (..., k), and the scores of all fp32 (..., experts)."""
        config = self.config
        with torch.autocast(states.device.type, enabled=False):
            logits = F.linear(states.float(), self.weight.float())
        softmax = config.scoring is Scoring.softmax
        scores = logits.softmax(dim=-1) if softmax else logits.sigmoid()
        chosen_by = scores if correction is None else scores.detach() + correction
        experts = chosen_by.topk(config.per_token, dim=-1, sorted=False).indices
        weights = scores.gather(-1, experts)
        if config.normalise_weights:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return experts, weights * config.scale, scores


def balance_penalty(scores: Tensor, *, experts: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """How unevenly each row uses the experts, and how often it used each.

    scores (B, T, E), experts int64 (B, T, k), real bool (B, T) -> penalty fp32 (B,), load int64
    (B, E). The penalty is DeepSeek's: the sum over experts of (load relative to an even load) x
    (mean score, scores summing to 1 for each token); 1 where all is even, 0 for a row without real
    tokens. Gradients flow through the scores alone.
    """
    num_experts = scores.shape[-1]
    real_once = real[..., None]
    load = torch.zeros(len(real), num_experts, dtype=torch.int64, device=real.device)
    load = load.scatter_add(1, experts.flatten(1), real_once.expand_as(experts).flatten(1).long())
    tokens = real.sum(dim=1).clamp(min=1)[:, None]
    shares = scores / (scores.sum(dim=-1, keepdim=True) + 1e-20)
    mean_shares = (shares * real_once).sum(dim=1) / tokens
    relative = load * (num_experts / experts.shape[-1]) / tokens
    return (relative * mean_shares).sum(dim=1), load
