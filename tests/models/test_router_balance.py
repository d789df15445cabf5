from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

from vltrain.errors import CheckpointError
from vltrain.models.moe_config import MoeConfig, Scoring
from vltrain.models.router import Router, balance_penalty
from vltrain.models.router_balance import RouterBalance, statistics

STEP = 0.001  # Base's (DeepSeek-VL2 Table 2)
TOKENS = 4096


def balance(**fields) -> RouterBalance:
    sizes = {"first_layer": 1, "layers": 1, "experts": 4, "corrects": True}
    return RouterBalance(**(sizes | fields))


def test_statistics_by_hand():
    found = statistics([[2, 2, 2, 2], [8, 0, 0, 0], [4, 4, 0, 0], [0, 0, 0, 0]])
    assert found.loads[1] == (8, 0, 0, 0)
    assert found.max_over_mean == (1.0, 4.0, 2.0, 0.0)
    assert found.entropy == pytest.approx((1.0, 0.0, 0.5, 0.0))


def test_corrections_move_against_the_load_by_one_step():
    state = balance()
    state.count(torch.tensor([[1, 0, 2, 5]]))
    state.count(torch.tensor([[1, 0, 0, 3]]))
    found = state.finish_step(step_size=0.25)
    assert found.loads == ((2, 0, 2, 8),)  # mean 3
    assert state.corrections is not None
    assert state.corrections.tolist() == [[0.25, 0.25, 0.25, -0.25]]
    state.count(torch.tensor([[3, 3, 3, 3]]))
    assert state.finish_step(step_size=0.25).loads == ((3, 3, 3, 3),)  # begun anew
    assert state.corrections.tolist() == [[0.25, 0.25, 0.25, -0.25]]  # at the mean: none moves


def test_step_size_zero_only_counts():
    state = balance()
    state.count(torch.tensor([[1, 0, 2, 5]]))
    state.finish_step(step_size=0.0)
    assert state.state() == [[0.0] * 4]


def test_a_forgotten_step_leaves_nothing():
    state = balance()
    state.count(torch.tensor([[1, 0, 2, 5]]))
    state.forget_step()
    assert state.finish_step(step_size=1.0).loads == ((0, 0, 0, 0),)
    assert state.state() == [[0.0] * 4]


def test_layers_without_experts_have_no_correction():
    state = balance(first_layer=1, layers=2)
    assert state.correction(0) is None
    assert state.correction(2) is not None
    assert balance(corrects=False).correction(1) is None


def test_state_survives_json_exactly_and_a_resumed_run_goes_on():
    first, second = balance(), balance()
    loads = torch.tensor([[1, 0, 2, 5]])
    first.count(loads)
    first.finish_step(step_size=0.1)
    second.restore(json.loads(json.dumps(first.state())))
    for state in (first, second):
        state.count(loads)
        state.finish_step(step_size=0.1)
    assert first.corrections is not None
    assert second.corrections is not None
    assert torch.equal(first.corrections, second.corrections)
    assert first.corrections[0].tolist() == pytest.approx([0.2, 0.2, 0.0, -0.2])


@pytest.mark.parametrize(
    ("state", "found"), [(None, "none"), ([[0.0] * 3], "1 x 3"), ([[0.0] * 4] * 2, "2 x 4")]
)
def test_a_state_of_another_model_is_refused(state, found):
    with pytest.raises(CheckpointError, match=f"corrections of {found} .*this model of 1 x 4"):
        balance().restore(state)


def test_a_model_without_corrections_has_no_state():
    state = balance(corrects=False)
    assert state.state() is None
    state.restore(None)
    with pytest.raises(CheckpointError, match="this model of none"):
        state.restore([[0.0] * 4])


def skewed_training(*, steps: int, step_size: float) -> float:
    """A router that prefers a few experts, trained by a task that does not care; the load's
    maximum over mean at the end."""
    torch.manual_seed(0)
    config = MoeConfig(experts=16, per_token=2, ffn=1, scoring=Scoring.sigmoid)
    module = Router(config, width=8)
    torch.nn.init.normal_(module.weight, std=0.3)
    module.weight.data[:3, 0] += 3.0  # every state has 1 there
    state = RouterBalance(first_layer=0, layers=1, experts=16, corrects=True)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    ratios = []
    for _ in range(steps):
        states = torch.randn(1, TOKENS, 8)
        states[..., 0] = 1.0
        experts, weights, scores = module(states, state.correction(0))
        _, load = balance_penalty(scores, experts=experts, real=torch.ones(1, TOKENS).bool())
        F.mse_loss(weights, torch.ones_like(weights)).backward()
        optimizer.step()
        optimizer.zero_grad()
        state.count(load)
        ratios += state.finish_step(step_size=step_size).max_over_mean
    return sum(ratios[-20:]) / 20


def test_corrections_even_out_a_skewed_router_and_without_them_it_stays_skewed():
    assert skewed_training(steps=300, step_size=STEP) < 1.2
    assert skewed_training(steps=300, step_size=0.0) > 3.0
