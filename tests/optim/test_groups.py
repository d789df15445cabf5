from __future__ import annotations

import pytest
from torch import nn

from vltrain.errors import ConfigError
from vltrain.optim.config import OptimConfig, PartOptimConfig
from vltrain.optim.groups import parameter_groups


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.adaptor = nn.Linear(2, 2)
        self.language = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
        self.siglip = nn.Linear(2, 2)


def part_of(name: str) -> str:
    return name.split(".")[0]


def summary(model: nn.Module, config: OptimConfig) -> list[tuple[str, float, list[str]]]:
    groups = parameter_groups(model.named_parameters(), part_of=part_of, config=config)
    assert [[id(p) for p in g["params"]] for g in groups] == [
        [id(model.get_parameter(n)) for n in g["names"]] for g in groups
    ]
    return [(g["part"], g["weight_decay"], g["names"]) for g in groups]


def test_one_group_per_part_holds_exactly_what_trains() -> None:
    model = Model()
    model.siglip.requires_grad_(False)
    model.language[0].weight.requires_grad_(False)
    assert summary(model, OptimConfig(lr=1.0, steps=1)) == [
        ("adaptor", 0.0, ["adaptor.weight", "adaptor.bias"]),
        ("language", 0.0, ["language.0.bias", "language.1.weight", "language.1.bias"]),
    ]


def test_weight_decay_spares_tensors_of_one_dimension() -> None:
    model = Model()
    model.siglip.requires_grad_(False)
    config = OptimConfig(
        lr=1.0, steps=1, weight_decay=0.1, parts={"adaptor": PartOptimConfig(weight_decay=0.0)}
    )
    assert summary(model, config) == [
        ("adaptor", 0.0, ["adaptor.weight", "adaptor.bias"]),
        ("language", 0.0, ["language.0.bias", "language.1.weight", "language.1.bias"]),
        ("language", 0.1, ["language.0.weight"]),
    ]


def test_nothing_that_trains_is_refused() -> None:
    with pytest.raises(ConfigError, match="No parameter trains"):
        summary(Model().requires_grad_(False), OptimConfig(lr=1.0, steps=1))


def test_a_part_that_does_not_train_has_no_settings() -> None:
    model = Model()
    model.siglip.requires_grad_(False)
    config = OptimConfig(lr=1.0, steps=1, parts={"siglip": PartOptimConfig()})
    with pytest.raises(ConfigError, match=r"siglip, which does not train here.*adaptor, language"):
        summary(model, config)
