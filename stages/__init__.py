"""The stages as values: each is one StagePolicy."""

from __future__ import annotations

from stages.align import ALIGN
from stages.finetune import FINETUNE
from stages.policy import StagePolicy
from stages.pretrain import PRETRAIN
from vltrain.errors import ConfigError

POLICIES: dict[int, StagePolicy] = {p.number: p for p in (ALIGN, PRETRAIN, FINETUNE)}


def policy_of(number: int) -> StagePolicy:
    """The policy of a stage number; ConfigError with the choices where there is none."""
    if number not in POLICIES:
        choices = ", ".join(f"{n} ({p.name})" for n, p in sorted(POLICIES.items()))
        raise ConfigError(f"stage.number={number}: choose one of {choices}")
    return POLICIES[number]
