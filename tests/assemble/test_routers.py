"""What follows a step for the routers of a mixture of experts."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vltrain.assemble.routers import balance_of, finish_step
from vltrain.models.build import build_model
from vltrain.models.config import RouterConfig


@pytest.mark.parametrize(
    ("trainable", "moved"),
    [(("siglip", "adaptor"), 0.0), (("siglip", "adaptor", "language"), 0.5)],
)
def test_corrections_are_as_frozen_as_the_language_model(
    compose, trainable: tuple[str, ...], moved: float
) -> None:
    tiny = compose("stage=2", "+experiment=demo", "model=tiny_vl2").model
    config = dataclasses.replace(tiny, router=RouterConfig(correction_step=0.5))
    built = build_model(
        config,
        trainable=trainable,
        freeze=(),
        dtype=torch.float32,
        frozen_dtype=torch.float32,
        device="cpu",
        seed=0,
    )
    balance = balance_of(built)
    assert balance is not None
    assert balance.corrections is not None
    loads = torch.tensor([[4, 4, 0, 0, 0, 0, 0, 0]] * 2)  # layers x experts
    balance.count(loads)
    row = finish_step(built, updated=True, with_loads=True)
    assert row is not None
    assert row["loads"] == loads.tolist()  # counted all the same
    assert float(balance.corrections.abs().max()) == moved
