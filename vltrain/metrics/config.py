"""Config of what is recorded while training."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class WandbMode(str, Enum):
    """Never a prompt."""

    auto = "auto"  # online with a key, else offline
    online = "online"
    offline = "offline"


@dataclass
class WandbConfig:
    enabled: bool = True
    project: str = "vltrain"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)
    mode: WandbMode = WandbMode.auto


@dataclass
class MetricsConfig:
    log_every: int = 1
    """Steps between outputs to console and wandb; steps.jsonl has every step."""
    peak_tflops: float | None = None
    """What one device can do at most, in TFLOP/s: 100 % of the MFU. null: of known devices at bf16
    (metrics/peaks.py); no MFU is reported for others."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
