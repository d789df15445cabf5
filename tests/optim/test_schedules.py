from __future__ import annotations

import pytest

from vltrain.errors import ConfigError
from vltrain.optim.config import OptimConfig, PartOptimConfig, ScheduleConfig, ScheduleKind
from vltrain.optim.schedules import learning_rate, warmup_steps


def config(steps: int, **schedule: object) -> OptimConfig:
    return OptimConfig(lr=1.0, steps=steps, schedule=ScheduleConfig(**schedule))  # type: ignore[arg-type]


def rates(optim: OptimConfig, *, part: str = "language") -> list[float]:
    return [round(learning_rate(s, config=optim, part=part), 6) for s in range(optim.steps)]


def test_warmup_is_linear_and_ends_at_the_peak() -> None:
    optim = config(6, kind=ScheduleKind.constant, warmup_steps=4)
    assert rates(optim) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_falls_from_the_end_of_the_warmup_to_the_final_fraction() -> None:
    optim = config(6, kind=ScheduleKind.cosine, warmup_steps=2)
    # (1 + cos(pi * k / 4)) / 2 for k = 0 .. 4, after one warm-up step below the peak
    assert rates(optim) == [0.5, 1.0, 0.853553, 0.5, 0.146447, 0.0]
    optim.schedule.final_fraction = 0.1
    assert rates(optim)[-1] == 0.1
    assert rates(optim)[3] == 0.55


def test_step_falls_at_shares_of_the_steps() -> None:
    optim = config(
        10, kind=ScheduleKind.step, milestones=[0.5, 0.8], factors=[0.316, 0.1], warmup_steps=2
    )
    assert rates(optim) == [0.5, 1.0, 1.0, 1.0, 1.0, 0.316, 0.316, 0.316, 0.1, 0.1]


def test_parts_differ_by_multiplier_and_warmup() -> None:
    optim = config(4, kind=ScheduleKind.constant)
    optim.parts["siglip"] = PartOptimConfig(lr_multiplier=0.1, warmup_steps=2)
    assert rates(optim) == [1.0] * 4
    assert rates(optim, part="siglip") == [0.05, 0.1, 0.1, 0.1]
    assert (warmup_steps(optim, part="siglip"), warmup_steps(optim, part="language")) == (2, 0)


@pytest.mark.parametrize("step", [-1, 4])
def test_a_step_outside_the_stage_is_refused(step: int) -> None:
    with pytest.raises(ConfigError, match=r"optim\.steps=4 has only the steps 0 to 3"):
        learning_rate(step, config=config(4, kind=ScheduleKind.constant), part="language")
