"""What is done about steps that are not finite, and about jumps of the loss.

In: each step's outcome, the same on every rank. Out: a verdict (skip, go back, stop) that is
therefore the same on every rank without an exchange; and an alarm. A skipped step leaves the
weights as they were, so a few are borne; many of them soon after one another mean that the weights
have gone where no step is finite, and those of the last checkpoint go on with the data that follows
(the data in between is not seen again: it may be the cause). Only so often: after that a person
must look.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from enum import Enum
from typing import Any

from vltrain.train.config import StabilityConfig

MIN_LOSSES = 20
"""Seen before a jump can be told."""
_NORMAL = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


class Verdict(str, Enum):
    skip = "skip"
    roll_back = "roll_back"
    stop = "stop"


class Stability:
    """``state()`` goes into the checkpoint (JSON-able) and comes back as ``state``. The losses of
    the alarm are not in it: after a restart it is silent for ``MIN_LOSSES`` steps."""

    def __init__(self, config: StabilityConfig, *, state: Mapping[str, Any] | None = None) -> None:
        self._config = config
        self._not_finite: list[int] = list((state or {}).get("not_finite", []))
        self.rollbacks = int((state or {}).get("rollbacks", 0))
        self._losses: dict[str | None, deque[float]] = {}

    def not_finite(self, step: int) -> Verdict:
        """Count a step that was not finite and say what to do about it."""
        since = step - self._config.skip_window_steps
        self._not_finite = [s for s in self._not_finite if s > since] + [step]
        if len(self._not_finite) <= self._config.skip_budget:
            return Verdict.skip
        return Verdict.roll_back if self.rollbacks < self._config.rollbacks else Verdict.stop

    def rolled_back(self) -> None:
        """The skips that led there are paid for."""
        self.rollbacks += 1
        self._not_finite = []
        self._losses.clear()

    def jump(self, loss: float, *, modality: str | None) -> str | None:
        """What is odd about a finite loss among the last ones of its modality, None if nothing."""
        config = self._config
        losses = self._losses.setdefault(modality, deque(maxlen=config.spike_window_steps))
        told = None
        if config.spike_deviations > 0 and len(losses) >= MIN_LOSSES:
            middle = statistics.median(losses)
            spread = statistics.median(abs(x - middle) for x in losses) * _NORMAL
            limit = middle + config.spike_deviations * max(spread, abs(middle) * 1e-2)
            if loss > limit:
                told = (
                    f"loss {loss:.4g} after a median of {middle:.4g} in the last {len(losses)} "
                    f"{modality or 'mixed'} steps; the alarm is at {limit:.4g} "
                    f"(stability.spike_deviations={config.spike_deviations:g})"
                )
        losses.append(loss)
        return told

    def state(self) -> dict[str, Any]:
        return {"not_finite": list(self._not_finite), "rollbacks": self.rollbacks}
