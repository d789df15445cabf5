"""Which of the optimizer's settings go together; read when a config is checked."""

from __future__ import annotations

from vltrain.errors import ConfigError
from vltrain.optim.config import Moments, OptimConfig, ScheduleKind


def check_optim(config: OptimConfig) -> None:
    """Raises ConfigError; sizes of single numbers are checked with the other sections'."""
    schedule = config.schedule
    if schedule.kind is ScheduleKind.step:
        if len(schedule.milestones) != len(schedule.factors) or not schedule.milestones:
            raise ConfigError(
                f"optim.schedule: kind=step needs as many milestones as factors, found "
                f"{schedule.milestones} and {schedule.factors}"
            )
        if sorted(schedule.milestones) != schedule.milestones or not all(
            0 < m < 1 for m in schedule.milestones
        ):
            raise ConfigError(
                f"optim.schedule.milestones={schedule.milestones}: rising shares of the steps, "
                "each between 0 and 1"
            )
        if not all(factor >= 0 for factor in schedule.factors):
            raise ConfigError(
                f"optim.schedule.factors={schedule.factors}: shares of the peak, each 0 or more"
            )
    if config.moments is Moments.bf16 and max(config.beta1, config.beta2) > 0.99:
        raise ConfigError(
            f"optim.moments=bf16 with optim.beta1={config.beta1} and optim.beta2="
            f"{config.beta2}: bf16 keeps 8 bits, so a moment that moves by less than a "
            "hundredth of what is new would stand still; lower them to 0.99, or set "
            "optim.moments=fp32"
        )
    _check_warmup("optim.schedule", steps=schedule.warmup_steps, of=config.steps)
    for part, own in config.parts.items():
        for name in ("lr_multiplier", "weight_decay", "warmup_steps"):
            value = getattr(own, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"optim.parts.{part}.{name}={value}: must not be negative")
        _check_warmup(f"optim.parts.{part}", steps=own.warmup_steps or 0, of=config.steps)


def _check_warmup(where: str, *, steps: int, of: int) -> None:
    if steps >= of:
        raise ConfigError(
            f"{where}.warmup_steps={steps} leaves nothing of optim.steps={of}; lower the warm-up"
        )
