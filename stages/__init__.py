"""The stages as values: each is one StagePolicy."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a stage may start from: stage numbers (0: published weights of each part), and the parts
    that may start from the seed, unasked."""

    predecessors: frozenset[int]
    may_be_new: frozenset[str]


def start_of(number: int, *, without: Collection[int]) -> Start:
    """The rules of stage ``number`` where the stages ``without`` are left out (Table 9): it then
    starts from what they would have started from, and what they may make is made here.

    Raises ConfigError where a stage is left out that this one does not come after.
    """
    policy = policy_of(number)
    predecessors, may_be_new = set(policy.predecessors), set(policy.may_be_new)
    for left_out in sorted(without, reverse=True):
        if left_out not in predecessors or left_out not in POLICIES:
            choices = ", ".join(str(n) for n in sorted(predecessors) if n in POLICIES)
            raise ConfigError(
                f"stage {policy.number} ({policy.name}): stage.without={sorted(without)}, but this "
                f"stage does not come straight after {left_out}; it may leave out "
                f"{choices or 'nothing'}"
            )
        predecessors = predecessors - {left_out} | POLICIES[left_out].predecessors
        may_be_new |= POLICIES[left_out].may_be_new
    return Start(predecessors=frozenset(predecessors), may_be_new=frozenset(may_be_new))
