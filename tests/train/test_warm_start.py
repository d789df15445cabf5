"""The short start from scratch: what it updates, how fast, and where it stops."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vltrain.train.warm_start import warm_up


class Toy(nn.Module):
    """Loss sum: weight x (sum of ids); the other weight is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.fixed = nn.Parameter(torch.tensor(1.0), requires_grad=False)

    def forward(self, ids, positions, segments, targets, image_positions, features):
        assert features == {"seen": 3}
        return self.weight * self.fixed * ids.sum()


def batch(total: float, *, targets: int) -> SimpleNamespace:
    return SimpleNamespace(
        ids=torch.tensor([total]),
        positions=None,
        segments=None,
        targets=None,
        image_positions=None,
        images=3,
        num_targets={"language": targets, "multimodal": 0},
    )


def warmed(batches, *, steps: int, lr: float) -> tuple[Toy, list[tuple[int, float]], list[float]]:
    """The model, what was reported, and the weight after each step."""
    toy, reported, weights = Toy(), [], []
    towers = SimpleNamespace(encode=lambda images: {"seen": images})

    def report(step: int, loss: float) -> None:
        reported.append((step, loss))
        weights.append(float(toy.weight.detach()))

    model = SimpleNamespace(module=toy, frozen=towers)
    warm_up(model, batches=batches, steps=steps, lr=lr, report=report)  # type: ignore[arg-type]
    return toy, reported, weights


def test_it_reports_the_mean_loss_per_target_and_stops_in_time() -> None:
    toy, reported, weights = warmed((batch(6.0, targets=3) for _ in range(99)), steps=4, lr=0.0)
    assert reported == [(1, 2.0), (2, 2.0), (3, 2.0), (4, 2.0)]
    assert weights == [1.0] * 4
    assert float(toy.fixed) == 1.0


def test_a_batch_without_targets_is_no_division_by_zero() -> None:
    _, reported, _ = warmed([batch(0.0, targets=0)], steps=4, lr=0.1)
    assert reported == [(1, 0.0)]


def test_the_rate_rises_then_falls_to_a_tenth() -> None:
    """AdamW's steps against a constant gradient are the learning rate, but for the decay (1 %)."""
    steps, lr = 20, 1e-3
    _, _, weights = warmed((batch(1.0, targets=1) for _ in range(steps)), steps=steps, lr=lr)
    moved = [before - after for before, after in zip([1.0, *weights], weights, strict=False)]
    assert moved[0] == pytest.approx(0.5 * lr, rel=0.03)  # half-way up, of two steps of warm-up
    assert moved[1] == pytest.approx(lr, rel=0.05)
    assert moved[-1] == pytest.approx(0.1 * lr, rel=0.05)
    assert max(moved) == moved[1]
