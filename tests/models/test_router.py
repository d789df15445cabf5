from __future__ import annotations

import math

import pytest
import torch

from vltrain.models.moe_config import MoeConfig, Scoring
from vltrain.models.router import Router, balance_penalty


def router(**fields) -> Router:
    """Four experts whose logits are the four entries of the state."""
    module = Router(MoeConfig(experts=4, per_token=2, ffn=1, **fields), width=4)
    module.weight.data = torch.eye(4)
    return module


def logits_of(*scores: float) -> torch.Tensor:
    return torch.tensor([scores]).log()


def by_expert(experts: torch.Tensor, weights: torch.Tensor) -> dict[int, float]:
    return {
        expert: pytest.approx(weight, abs=1e-6)
        for expert, weight in zip(experts[0].tolist(), weights[0].tolist(), strict=True)
    }


def test_softmax_weights_are_the_scores_of_all():
    experts, weights, scores = router()(logits_of(0.1, 0.4, 0.3, 0.2), None)
    assert by_expert(experts, weights) == {1: 0.4, 2: 0.3}
    assert scores[0].tolist() == pytest.approx([0.1, 0.4, 0.3, 0.2])


def test_normalised_weights_sum_to_the_scale():
    """transformers' DeepSeek-V2 stores norm_topk_prob and ignores it."""
    experts, weights, _ = router(normalise_weights=True, scale=2.0)(
        logits_of(0.1, 0.4, 0.4, 0.1), None
    )
    assert by_expert(experts, weights) == {1: 1.0, 2: 1.0}


def test_sigmoid_scores_each_expert_by_itself():
    logit = math.log(3)  # sigmoid 0.75
    _, weights, scores = router(scoring=Scoring.sigmoid)(
        torch.tensor([[logit, 0.0, logit, -logit]]), None
    )
    assert scores[0].tolist() == pytest.approx([0.75, 0.5, 0.75, 0.25])
    assert weights[0].tolist() == pytest.approx([0.75, 0.75])


def test_a_correction_chooses_but_does_not_weigh():
    correction = torch.tensor([0.5, 0.0, 0.0, 0.0])
    experts, weights, _ = router()(logits_of(0.1, 0.4, 0.3, 0.2), correction)
    assert by_expert(experts, weights) == {0: 0.1, 1: 0.4}


def test_scores_stay_in_float32_whatever_surrounds_them():
    module = router().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, weights, scores = module(logits_of(0.1, 0.4, 0.3, 0.2).bfloat16(), None)
    assert (weights.dtype, scores.dtype) == (torch.float32, torch.float32)


def test_the_penalty_by_hand():
    """One token of two experts' shares 3/4 and 1/4, one of 1/2 and 1/2; both chose expert 0."""
    scores = torch.tensor([[[0.75, 0.25], [0.5, 0.5]]])
    penalty, load = balance_penalty(
        scores, experts=torch.zeros(1, 2, 1, dtype=torch.int64), real=torch.ones(1, 2).bool()
    )
    assert load.tolist() == [[2, 0]]
    # relative loads 2 and 0, mean shares 5/8 and 3/8
    assert penalty.tolist() == pytest.approx([1.25])


def test_an_even_router_has_penalty_one():
    scores = torch.full((1, 4, 4), 0.25)
    experts = torch.tensor([[[0], [1], [2], [3]]])
    penalty, _ = balance_penalty(scores, experts=experts, real=torch.ones(1, 4).bool())
    assert penalty.tolist() == pytest.approx([1.0])


def test_sigmoid_scores_count_as_shares():
    scores = torch.tensor([[[0.75, 0.25], [0.5, 0.5]]])
    arguments = {
        "experts": torch.zeros(1, 2, 1, dtype=torch.int64),
        "real": torch.ones(1, 2).bool(),
    }
    halved, _ = balance_penalty(scores * 0.5, **arguments)
    assert halved.tolist() == pytest.approx([1.25])


def test_only_real_tokens_count():
    scores = torch.tensor([[[0.75, 0.25], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]]])
    experts = torch.tensor([[[0], [1]], [[0], [0]]])
    real = torch.tensor([[True, False], [False, False]])
    penalty, load = balance_penalty(scores, experts=experts, real=real)
    assert load.tolist() == [[1, 0], [0, 0]]
    assert penalty.tolist() == pytest.approx([1.5, 0.0])
