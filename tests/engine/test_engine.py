"""What build_engine refuses before any process group is needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vltrain.engine.config import EngineConfig
from vltrain.engine.engine import build_engine
from vltrain.errors import EngineError


def build(module: nn.Module, groups: list[dict[str, Any]], **config: Any) -> None:
    build_engine(
        module,
        groups=groups,
        config=EngineConfig(**config),
        clip_norm=1.0,
        micro_batch_size=1,
        micro_batches_per_step=1,
        device=torch.device("cpu"),
    )


def test_the_optimizer_has_exactly_what_trains() -> None:
    module = nn.Linear(2, 2)
    groups = [{"params": [module.weight], "part": "adaptor"}]
    with pytest.raises(EngineError, match=r"has 1 parameters, the module trains 2.*group: bias"):
        build(module, groups)
    module.requires_grad_(False)
    module.bias.requires_grad_(True)
    with pytest.raises(EngineError, match=r"group: bias.*not trainable in the module: 1"):
        build(module, groups)


def test_settings_are_checked_first() -> None:
    with pytest.raises(EngineError, match=r"engine\.extra\.zero_optimization\.stage=3"):
        build(nn.Linear(2, 2), [], extra={"zero_optimization": {"stage": 3}})
