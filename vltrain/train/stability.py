"""What is done about steps that are not finite, and about jumps of the loss and of the share of
tokens that are learned.

In: each step's outcome, the same on every rank. Out: a verdict (skip, go back, stop) that is
therefore the same on every rank without an exchange; and alarms. A skipped step leaves the
weights as they were, so a few are borne; many of them soon after one another mean that the weights
have gone where no step is finite, and those of the last good checkpoint go on with the data that
follows (the data in between is not seen again: it may be the cause). Only so often: after that a
person must look.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any

from vltrain.train.config import StabilityConfig

MIN_SEEN = 20
"""Steps before a jump can be told."""
_NORMAL = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


class Verdict(str, Enum):
    skip = "skip"
    roll_back = "roll_back"
    stop = "stop"


class Stability:
    """``state()`` goes into the checkpoint (JSON-able) and comes back as ``state``. What the alarms
    compare with is not in it: after a restart they are silent for ``MIN_SEEN`` steps."""

    def __init__(self, config: StabilityConfig, *, state: Mapping[str, Any] | None = None) -> None:
        self._config = config
        self._not_finite: list[int] = list((state or {}).get("not_finite", []))
        self.rollbacks = int((state or {}).get("rollbacks", 0))
        # Of each rollback: the step of the checkpoint that was gone back to, the step at which.
        self.left = tuple((back, at) for back, at in (state or {}).get("left", ()))
        self._losses: dict[str | None, deque[float]] = {}
        self._shares: dict[str | None, deque[float]] = {}

    def not_finite(self, step: int) -> Verdict:
        """Count a step that was not finite and say what to do about it."""
        self._not_finite = [*self._lately(step), step]
        if len(self._not_finite) <= self._config.skip_budget:
            return Verdict.skip
        return Verdict.roll_back if self.rollbacks < self._config.rollbacks else Verdict.stop

    def skipped_lately(self, step: int) -> int:
        """How many steps of the window that ends with ``step`` were not finite and not paid for."""
        return len(self._lately(step))

    def _lately(self, step: int) -> list[int]:
        return [s for s in self._not_finite if s > step - self._config.skip_window_steps]

    def rolled_back(self, *, to: int, at: int) -> None:
        """From step ``at`` to the checkpoint of step ``to``: the skips that led there are paid
        for."""
        self.rollbacks += 1
        self.left = (*self.left, (to, at))
        self._not_finite = []
        self._losses.clear()

    def jump(self, loss: float, *, modality: str | None) -> str | None:
        """What is odd about a finite loss among the last ones of its modality, None if nothing."""
        config = self._config
        losses = self._losses.setdefault(modality, deque(maxlen=config.spike_window_steps))
        told = None
        if config.spike_deviations > 0 and len(losses) >= MIN_SEEN:
            middle, deviation = _usual(losses)
            limit = middle + config.spike_deviations * deviation
            if loss > limit:
                told = (
                    f"loss {loss:.4g} after a median of {middle:.4g} in the last {len(losses)} "
                    f"{modality or 'mixed'} steps; the alarm is at {limit:.4g} "
                    f"(stability.spike_deviations={config.spike_deviations:g})"
                )
        losses.append(loss)
        return told

    def label_jump(self, share: float, *, modality: str | None) -> str | None:
        """What is odd about the share of a step's tokens that are learned, None if nothing."""
        config = self._config
        shares = self._shares.setdefault(modality, deque(maxlen=config.spike_window_steps))
        told = None
        if config.label_share_deviations > 0 and len(shares) >= MIN_SEEN:
            middle, deviation = _usual(shares)
            limit = config.label_share_deviations * deviation
            if abs(share - middle) > limit:
                told = (
                    f"{share:.1%} of the tokens are learned after a median of {middle:.1%} in the "
                    f"last {len(shares)} {modality or 'mixed'} steps; the alarm is at "
                    f"{limit:.1%} more or less (stability.label_share_deviations="
                    f"{config.label_share_deviations:g})"
                )
        shares.append(share)
        return told

    def state(self) -> dict[str, Any]:
        return {
            "not_finite": list(self._not_finite),
            "rollbacks": self.rollbacks,
            "left": [list(span) for span in self.left],
        }


def _usual(values: Collection[float]) -> tuple[float, float]:
    """Median and robust standard deviation, which is taken as 1 % of the median at least."""
    middle = statistics.median(values)
    spread = statistics.median(abs(x - middle) for x in values) * _NORMAL
    return middle, max(spread, abs(middle) * 1e-2)
