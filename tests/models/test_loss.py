from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from vltrain.batch import IGNORE
from vltrain.models.build import build_model
from vltrain.models.loss import LossHead


@pytest.mark.parametrize("chunk_tokens", [1, 3, 100])
def test_chunks_equal_the_full_loss_with_gradients(chunk_tokens):
    torch.manual_seed(0)
    head = LossHead(8, 50, chunk_tokens=chunk_tokens)
    hidden = torch.randn(2, 7, 8, requires_grad=True)
    targets = torch.randint(0, 50, (2, 7))
    targets[0, :4] = IGNORE
    full = F.cross_entropy(
        head(hidden).flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORE
    )
    expected = torch.autograd.grad(full, (hidden, head.weight))
    loss = head(hidden, targets)
    found = torch.autograd.grad(loss, (hidden, head.weight))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, full)
    torch.testing.assert_close(found, expected)


def test_no_label_gives_a_zero_with_a_graph():
    head = LossHead(8, 50, chunk_tokens=4)
    hidden = torch.randn(1, 5, 8, requires_grad=True)
    loss = head(hidden, torch.full((1, 5), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad is not None
    assert hidden.grad.abs().sum() == 0
    assert head.weight.grad is not None
    assert head.weight.grad.abs().sum() == 0


def test_logits_exist_for_one_chunk_of_labels_only(monkeypatch):
    head = LossHead(8, 50, chunk_tokens=4)
    rows: list[int] = []
    linear = F.linear
    monkeypatch.setattr(
        F, "linear", lambda states, weight: rows.append(len(states)) or linear(states, weight)
    )
    targets = torch.full((1, 100), IGNORE)
    targets[0, 10:20] = 1
    head(torch.randn(1, 100, 8, requires_grad=True), targets)
    assert rows == [4, 4, 2]


def test_a_fresh_model_starts_at_the_logarithm_of_its_vocabulary(tiny, pack):
    built = build_model(
        tiny,
        trainable=["language"],
        freeze=[],
        dtype=torch.float32,
        frozen_dtype=torch.float32,
        device="cpu",
        seed=0,
    )
    batch = pack(tiny, [[(200, 1)]])
    mean = batch.run(built).item() / int((batch.targets != IGNORE).sum())
    assert mean == pytest.approx(math.log(512), abs=0.1)
