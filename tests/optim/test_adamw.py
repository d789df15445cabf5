"""AdamW with moments in bf16, against torch's own and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vltrain.optim import adamw
from vltrain.optim.adamw import Bf16MomentsAdamW, make_optimizer
from vltrain.optim.config import Moments

LIKE_BASE = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def trained(kind: type[torch.optim.AdamW], *, updates: int) -> Tensor:
    """A matrix after so many noisy updates towards zero."""
    generator = torch.Generator().manual_seed(0)
    values = torch.nn.Parameter(torch.randn(50, 3, generator=generator))
    optimizer = kind([values], lr=0.01, **LIKE_BASE)
    for _ in range(updates):
        values.grad = values.detach() + torch.randn(50, 3, generator=generator)
        optimizer.step()
    return values.detach()


def test_one_update_by_hand() -> None:
    values = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = Bf16MomentsAdamW([values], lr=0.1, **LIKE_BASE)
    values.grad = torch.tensor([0.5])
    optimizer.step()
    # Decay to 0.99; the first update goes the whole learning rate against the gradient's sign.
    assert values.item() == pytest.approx(0.89, abs=1e-6)
    state = optimizer.state[values]
    assert state["step"].item() == 1
    # A tenth of 0.5 and a twentieth of 0.25, to the nearest of 8 bits.
    assert state["exp_avg"].dtype is state["exp_avg_sq"].dtype is torch.bfloat16
    assert state["exp_avg"].item() == 0.050048828125
    assert state["exp_avg_sq"].item() == 0.0125122070312500


def test_many_updates_stay_near_those_of_fp32_moments() -> None:
    start, rounded, exact = (
        trained(kind, updates=updates)
        for kind, updates in (
            (torch.optim.AdamW, 0),
            (Bf16MomentsAdamW, 200),
            (torch.optim.AdamW, 200),
        )
    )
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).norm() < 0.01 * (exact - start).norm()


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(Bf16MomentsAdamW, updates=5)
    monkeypatch.setattr(adamw, "CHUNK_ELEMENTS", 7)
    assert torch.equal(trained(Bf16MomentsAdamW, updates=5), whole)


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    values = torch.nn.Parameter(torch.ones(2))
    optimizer = Bf16MomentsAdamW([values], lr=0.1, **LIKE_BASE)
    optimizer.step()
    assert values.tolist() == [1.0, 1.0]
    assert not optimizer.state


@pytest.mark.parametrize(
    ("moments", "kind"), [(Moments.fp32, torch.optim.AdamW), (Moments.bf16, Bf16MomentsAdamW)]
)
def test_groups_say_which(moments: Moments, kind: type) -> None:
    group = {"params": [torch.nn.Parameter(torch.ones(2))], "moments": moments, **LIKE_BASE}
    assert type(make_optimizer([group], fused=False)) is kind
