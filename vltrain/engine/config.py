"""Config of the DeepSpeed engine; the DeepSpeed dict is rendered from it, never read from a
file."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Dtype(str, Enum):
    fp32 = "fp32"
    bf16 = "bf16"


class Offload(str, Enum):
    none = "none"
    cpu = "cpu"


@dataclass
class EngineConfig:
    """How the step is computed. Nothing here changes what is learned beyond rounding."""

    zero_stage: int = 1
    dtype: Dtype = Dtype.bf16
    reduce_dtype: Dtype = Dtype.fp32
    """Gradients are added up over ranks in it. bf16 halves what is sent, and forgets what is small
    beside the sum so far: in a ring, 512 equal gradients add up to 256."""
    offload_optimizer: Offload = Offload.none
    offload_params: Offload = Offload.none
    timeout_seconds: int = 600
    """Longest that anything may stand still while it trains, waiting for another rank included;
    the run ends then, with the reason."""
    start_seconds: int = 1800
    """Longest for one thing that a rank does before the first step: finding the checkpoint, opening
    the data, building the model, loading weights; the run ends then, with the reason."""
    stall_seconds: int = 300
    """After which a rank that stands still shows its stack traces and what it waits for."""
    lost_seconds: int = 120
    """Without a sign of life, after which a rank counts as dead."""
    bucket_elements: int = 50_000_000
    param_persistence_threshold: int = 100_000
    """ZeRO-3: parameters smaller than this are kept whole on every rank."""
    extra: dict[str, Any] = field(default_factory=dict)
    """More DeepSpeed keys, passed on as they are; refused where they contradict a key we render."""
