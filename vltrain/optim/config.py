"""Config of the optimizer and its schedule. Values live in conf/optim/."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING


class ScheduleKind(str, Enum):
    cosine = "cosine"
    step = "step"
    constant = "constant"


class Moments(str, Enum):
    """Type that AdamW's two moments are kept in; masters and gradients are fp32 in any case."""

    fp32 = "fp32"
    bf16 = "bf16"  # DeepSeek-VL2-Base (Table 2, "BF16 Optimizer"; of which states is not said)


@dataclass
class ScheduleConfig:
    """Learning rate over the steps of a stage, after a linear warm-up from 0."""

    kind: ScheduleKind = MISSING
    warmup_steps: int = 0
    final_fraction: float = 0.0
    """cosine: the learning rate at the last step as a share of the peak (not published; 0)."""
    milestones: list[float] = field(default_factory=list)
    """step: shares of the stage's steps at which the rate falls."""
    factors: list[float] = field(default_factory=list)
    """step: share of the peak after each milestone (not published for DeepSeek-VL; the parent
    recipe is 0.316 at 0.8 and 0.1 at 0.9, VL2's is 1/sqrt(10) at 0.5 and 0.1 at 0.75)."""


@dataclass
class PartOptimConfig:
    """What one part of the model does differently."""

    lr_multiplier: float = 1.0
    weight_decay: float | None = None
    warmup_steps: int | None = None


@dataclass
class OptimConfig:
    """AdamW."""

    lr: float = MISSING
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    moments: Moments = Moments.fp32
    clip_norm: float = 1.0
    """Global gradient norm; 0 turns clipping off. Always handed to DeepSpeed explicitly."""
    steps: int = MISSING
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    parts: dict[str, PartOptimConfig] = field(default_factory=dict)
    """Keys: sam, siglip, vit, adaptor, language. On the command line as one word:
    ``'+optim.parts={siglip: {lr_multiplier: 0.1}}'``."""
