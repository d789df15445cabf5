"""Learning rate as a pure function of the step.

In: how many updates a stage has made, its optimizer config, the part. Out: the rate of the next update. No state is
kept and none is saved: a resumed run computes the same rates, and the rate of step 40,000 can be printed
without running the first. Rejected: torch's schedulers, whose state is one more thing to restore, and
DeepSpeed's, which would put a number into a second config.
"""

from __future__ import annotations

import math

from vltrain.errors import ConfigError
from vltrain.optim.config import OptimConfig, ScheduleConfig, ScheduleKind


def learning_rate(step: int, *, config: OptimConfig, part: str) -> float:
    """Learning rate of the update that follows ``step`` updates (0 for the first of a stage).

    The n-th update (n = step + 1) of N has n / warmup_steps of the peak while n <= warmup_steps: the
    first update moves something and update ``warmup_steps`` is at the peak. Then cosine falls to
    ``final_fraction`` at update N, step changes after each milestone's share of N updates, constant
    stays. The peak is ``lr`` times the part's multiplier (DeepSeek-VL section 3.3 gives the values).
    """
    if not 0 <= step < config.steps:
        raise ConfigError(
            f"The learning rate of step {step} was asked for, but optim.steps={config.steps} has only the "
            f"steps 0 to {config.steps - 1}. A run that should go on needs a larger optim.steps."
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


def check_optim(config: OptimConfig) -> None:
    """Refuse an optimizer config that no schedule can follow. Raises ConfigError."""
    if config.steps < 1:
        raise ConfigError(f"optim.steps={config.steps}: a stage makes at least one update.")
    if not config.lr > 0:
        raise ConfigError(f"optim.lr={config.lr}: the learning rate must be above 0.")
    if config.clip_norm < 0:
        raise ConfigError(
            f"optim.clip_norm={config.clip_norm}: the largest gradient norm, or 0 for no clipping."
        )
    for name, beta in (("beta1", config.beta1), ("beta2", config.beta2)):
        if not 0 <= beta < 1:
            raise ConfigError(f"optim.{name}={beta}: must lie in [0, 1).")
    _check_warmup(config)
    _check_schedule(config.schedule)


def _check_warmup(config: OptimConfig) -> None:
    named = {"optim.schedule.warmup_steps": config.schedule.warmup_steps}
    for part, own in config.parts.items():
        if own.warmup_steps is not None:
            named[f"optim.parts.{part}.warmup_steps"] = own.warmup_steps
        if own.lr_multiplier < 0:
            raise ConfigError(
                f"optim.parts.{part}.lr_multiplier={own.lr_multiplier}: must not be negative."
            )
    for name, steps in named.items():
        if not 0 <= steps <= config.steps:
            raise ConfigError(
                f"{name}={steps} with optim.steps={config.steps}: the warm-up must end within the stage."
            )


def _check_schedule(schedule: ScheduleConfig) -> None:
    if schedule.kind is ScheduleKind.cosine and not 0 <= schedule.final_fraction <= 1:
        raise ConfigError(
            f"optim.schedule.final_fraction={schedule.final_fraction}: a share of the peak, 0 to 1."
        )
    if schedule.kind is not ScheduleKind.step:
        return
    milestones, factors = schedule.milestones, schedule.factors
    if not milestones or len(milestones) != len(factors):
        raise ConfigError(
            f"optim.schedule.kind=step needs as many factors as milestones, at least one; found "
            f"milestones={milestones} and factors={factors}. "
            "Example: milestones: [0.8, 0.9], factors: [0.316, 0.1]."
        )
    if any(not 0 < m < 1 for m in milestones) or sorted(set(milestones)) != list(milestones):
        raise ConfigError(
            f"optim.schedule.milestones={milestones}: shares of the stage's steps, rising, between 0 and 1."
        )
