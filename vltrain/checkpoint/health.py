"""Which checkpoint a run may go back to when too many of its steps are not finite.

In: what a checkpoint's manifest says of its own state. Out: why it is not good, or that it is. A
checkpoint is good where

- every value in it is finite,
- no step of the skip window before it was skipped because it was not finite (the weights may have
  been going bad already),
- no rollback has left it behind, and
- an update was made on top of it: a loss and gradients of just these weights were finite.

The first two are known when it is written and recorded with it, the others depend on what came
afterwards and show when somebody asks. Rejected: trying the weights of the newest one on a batch
before it is called good, which costs a step at every save and shows no more than the next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Health:
    """The state of a run at one of its checkpoints.

    updates: made in this stage, of those that are in the weights. skipped_lately: steps of the skip
    window that were not finite. left: (step, step) of each rollback so far: the checkpoint that
    the run went back to and the step at which it did; what lies between them is left behind.
    finite: whether every value of the checkpoint is; the store finds out.
    """

    updates: int
    skipped_lately: int
    left: tuple[tuple[int, int], ...] = ()
    finite: bool = True


NOT_FINITE = "values in it are not finite"


def why_not_good(
    health: Health | None, *, step: int, updates: int, left: Sequence[tuple[int, int]]
) -> str | None:
    """Why a run that has made ``updates`` and left what ``left`` says behind must not go back to
    the checkpoint of ``step``; None where it is good."""
    if health is None:
        return "it is of a version that did not record its state"
    if not health.finite:
        return NOT_FINITE
    if health.skipped_lately:
        return f"{health.skipped_lately} of the steps before it were not finite"
    if any(back < step < at for back, at in left):
        return "a rollback left it behind"
    if health.updates >= updates:
        return "no update was made with its weights: no step has shown that they are any good"
    return None
