"""Learning rate as a pure function of the step.

In: how many updates a stage has made, its optimizer config, the part. Out: the rate of the next
update. No state is kept and none is saved: a resumed run computes the same rates, and the rate of
step 40,000 can be printed without running the first. The config's own rules are checked by
``runconfig``. Rejected: torch's schedulers, whose state is one more thing to restore, and
DeepSpeed's, which would put a number into a second config.
"""

from __future__ import annotations

import math

from vltrain.errors import ConfigError
from vltrain.optim.config import OptimConfig, ScheduleKind


def learning_rate(step: int, *, config: OptimConfig, part: str) -> float:
    """Learning rate of the update that follows ``step`` updates (0 for the first of a stage).

    The n-th update (n = step + 1) of N has n / warmup_steps of the peak while n <= warmup_steps:
    the first update moves something and update ``warmup_steps`` is at the peak. Then cosine falls
    to ``final_fraction`` at update N, step changes after each milestone's share of N updates,
    constant stays. The peak is ``lr`` times the part's multiplier (DeepSeek-VL section 3.3 gives
    the values).
    """
    if not 0 <= step < config.steps:
        raise ConfigError(
            f"The learning rate of step {step} was asked for, but optim.steps={config.steps} has "
            f"only the steps 0 to {config.steps - 1}. A run that should go on needs a larger "
            "optim.steps."
        )
    own = config.parts.get(part)
    peak = config.lr * (own.lr_multiplier if own is not None else 1.0)
    update = step + 1
    warmup = warmup_steps(config, part=part)
    if update < warmup:
        return peak * update / warmup
    return peak * _share(update, config=config, warmup=warmup)


def warmup_steps(config: OptimConfig, *, part: str) -> int:
    """Updates until a part's rate is at its peak."""
    own = config.parts.get(part)
    if own is not None and own.warmup_steps is not None:
        return own.warmup_steps
    return config.schedule.warmup_steps


def _share(update: int, *, config: OptimConfig, warmup: int) -> float:
    """Share of the peak at an update that is past the warm-up."""
    schedule = config.schedule
    if schedule.kind is ScheduleKind.constant:
        return 1.0
    if schedule.kind is ScheduleKind.cosine:
        done = (update - warmup) / max(1, config.steps - warmup)
        floor = schedule.final_fraction
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done))
    share = 1.0
    for milestone, factor in zip(schedule.milestones, schedule.factors, strict=True):
        if update > milestone * config.steps:
            share = factor
    return share
