"""The one training loop, ignorant of stage and model.

In: an engine, frozen towers, a loader of planned steps, and where results go. Out: rows, faults,
checkpoints. Per step: count the label tokens of all ranks, then divide by them (never a mean of
means); every rank runs the same number of micro-batches through the same modules; the engine agrees
on whether the step was finite. A step that is not finite updates nothing; ``Stability`` says
whether the next one is tried, the last good checkpoint's weights go on, or the run ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Protocol

import torch

from vltrain import distributed
from vltrain.batch import Fault, MicroBatch, Modality, StepPlan
from vltrain.data.config import RatioUnit
from vltrain.engine.engine import Engine, StepOutcome
from vltrain.errors import NonFiniteError, StoppedError
from vltrain.metrics.rows import StepRow
from vltrain.train.agree import AgreedStep, agree
from vltrain.train.counters import Counters
from vltrain.train.stability import Stability, Verdict

log = logging.getLogger(__name__)


class Features(Protocol):
    """Frozen towers: uint8 images to what the trained module reads."""

    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]: ...


class Doing(str, Enum):
    """What the loop is at, for whoever watches it."""

    data = "waiting for data"
    agree = "agreeing with the other ranks"
    update = "training"
    save = "saving"


@dataclass
class Progress:
    """Where the run is; all of it goes into every checkpoint and comes back from it."""

    step: int = 0  # steps done
    cursor: dict[str, Any] | None = None  # of the plan, after ``step``
    chain: str = ""  # head of the digest chain
    counters: Counters = field(default_factory=Counters)
    # Of the steps since the last save: what retention compares. Not carried over a restart.
    nats: float = 0.0
    targets: int = 0


@dataclass(frozen=True, kw_only=True)
class GoneBack:
    """Whose weights go on after a rollback. updates: that are in them."""

    step: int
    updates: int


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the loop calls out to; ``row``, ``event``, ``flops`` and ``imbalance`` on the first rank
    only, the others on every rank."""

    row: Callable[[StepRow], None]
    # all ranks: the budget stops them all; bad records of each source so far
    faults: Callable[[StepPlan, tuple[Fault, ...]], dict[str, int]]
    save: Callable[[Progress], None]  # all ranks (collective); may read and write on afterwards
    copied: Callable[[], None]  # wait until ``save`` has read what the next update changes
    save_failed: Callable[[], bool]  # whether such a write has ended badly on this rank
    settle: Callable[[], None]  # all ranks: wait for the write; raises what went wrong with it
    learning_rates: Callable[[int], dict[str, float]]  # steps done -> rate per part
    flops: Callable[[StepPlan, AgreedStep], float]  # of the model, forward and backward
    imbalance: Callable[[StepPlan], float]  # planned work of the busiest rank over the mean
    # all ranks (collective): weights of the last good checkpoint; None where none is good
    roll_back: Callable[[], GoneBack | None]
    routers: Callable[[int, StepOutcome | None], dict[str, Any] | None]  # all ranks (collective),
    # after a step: its number and outcome; how tokens were spread over experts, for the row
    event: Callable[[str, int, str], None]  # word, step, detail; on the first rank only
    stop: Callable[[], str | None]  # the signal that asked this process to stop
    doing: Callable[[Doing, int], None]  # told at each change, with the step that it is for


class Trainer:
    """Runs the steps that are left. ``steps`` counts the whole stage; ``save_every`` in steps;
    ``modalities``: of each source by name, in recipe order."""

    def __init__(
        self,
        *,
        stage: str,
        unit: RatioUnit,
        modalities: Mapping[str, Modality],
        engine: Engine,
        towers: Features,
        loader: Iterable[tuple[StepPlan, Sequence[MicroBatch]]],
        hooks: Hooks,
        progress: Progress,
        stability: Stability,
        steps: int,
        save_every: int,
    ) -> None:
        self._stage = stage
        self._unit = unit
        self._modalities = dict(modalities)
        self._modality_of_number = tuple(modalities.values())
        self._engine = engine
        self._towers = towers
        self._loader = loader
        self._hooks = hooks
        self.progress = progress
        self._stability = stability
        self._steps = steps
        self._save_every = save_every
        self._saved = progress.step

    def run(self) -> Progress:
        """Train until ``steps`` are done or the plan ends, saving on the way and at the end.

        Raises StoppedError, on all ranks and after saving, where a signal asked any of them to
        stop.
        """
        steps = iter(self._loader)
        try:
            self._train(steps)
        finally:
            # An error's traceback would keep it, and its workers, for as long as it lives.
            if isinstance(steps, Generator):
                steps.close()
        if self.progress.step < self._steps:
            log.warning(
                "The data ended after step %d of %d (every finite source is used up).",
                self.progress.step,
                self._steps,
            )
        self._save()
        self._settle()
        return self.progress

    def _train(self, steps: Iterator[tuple[StepPlan, Sequence[MicroBatch]]]) -> None:
        begin = time.monotonic()
        self._hooks.doing(Doing.data, self.progress.step + 1)
        for plan, micros in steps:
            waited = time.monotonic() - begin
            self._step(plan, micros, begin=begin, waited=waited)
            if self.progress.step % self._save_every == 0 or self.progress.step == self._steps:
                self._save()
            if self.progress.step >= self._steps:
                break
            begin = time.monotonic()
            self._hooks.doing(Doing.data, self.progress.step + 1)

    def _settle(self) -> None:
        self._hooks.doing(Doing.save, self.progress.step)
        self._hooks.settle()

    def _save(self) -> None:
        if self._saved != self.progress.step:
            self._hooks.doing(Doing.save, self.progress.step)
            self._hooks.save(self.progress)
            self._saved = self.progress.step
            self.progress.nats, self.progress.targets = 0.0, 0

    def _stop(self, asked: str) -> None:
        self._event("stopped", asked)
        self._save()
        self._settle()
        if self.progress.step == 0:
            raise StoppedError(
                f"{asked}: stopped before the first of {self._steps} steps; there was nothing to "
                "save. The same command begins anew"
            )
        raise StoppedError(
            f"{asked}: stopped after step {self.progress.step} of {self._steps}, which is saved. "
            "The same command goes on from there"
        )

    def _step(
        self, plan: StepPlan, micros: Sequence[MicroBatch], *, begin: float, waited: float
    ) -> None:
        self._hooks.doing(Doing.agree, plan.step + 1)
        agreed = agree(
            plan,
            micros,
            chain_head=self.progress.chain,
            stop=self._hooks.stop(),
            failed=self._hooks.save_failed(),
        )
        if agreed.failed:
            self._settle()
        if agreed.stop is not None:
            self._stop(agreed.stop)
        self._hooks.doing(Doing.update, plan.step + 1)
        bad_records = self._hooks.faults(plan, agreed.faults)
        rates = self._hooks.learning_rates(self.progress.step)
        outcome = self._update(micros, agreed, rates) if agreed.num_targets else None
        self._advance(plan, agreed, skipped=outcome is None or not outcome.finite)
        routed = self._hooks.routers(self.progress.step, outcome)
        if distributed.is_first():
            row = self._row(plan, agreed, outcome, rates, routed, begin=begin, waited=waited)
            self._hooks.row(replace(row, bad_records=bad_records))
        labels = agreed.num_targets / max(1, sum(agreed.tokens.values()))
        told = self._stability.label_jump(labels, modality=_value(plan.modality))
        if told is not None:
            self._event("label_share", told)
        if outcome is not None and not outcome.finite:
            self._bear(outcome)
        elif outcome is not None:
            self.progress.nats += outcome.loss * agreed.num_targets
            self.progress.targets += agreed.num_targets
            told = self._stability.jump(outcome.loss, modality=_value(plan.modality))
            if told is not None:
                self._event("loss_spike", told)

    def _bear(self, outcome: StepOutcome) -> None:
        """What follows a step that was not finite; every rank comes to the same."""
        step = self.progress.step
        found = f"loss {outcome.loss}, gradient norm {outcome.grad_norm}; nothing was updated"
        verdict = self._stability.not_finite(step)
        if verdict is Verdict.skip:
            self._event("not_finite", found)
            return
        before = self._stability.rollbacks
        self._hooks.doing(Doing.save, step)
        back = self._hooks.roll_back()
        if back is not None:
            self._go_on_from(back, found)
        if verdict is Verdict.roll_back and back is not None:
            return
        self._settle()
        stopped = f"step {step}: {found}. Too many steps were not finite (stability.skip_budget)"
        remedy = "a lower optim.lr or a longer optim.schedule.warmup_steps"
        if back is None:
            raise NonFiniteError(
                f"{stopped} and there is no good checkpoint to go back to: one whose every value "
                "is finite, with no such step shortly before it and an update made after it. Try "
                f"{remedy} in a new run.name, or move away the checkpoints that you do not trust: "
                "the same command goes on from the newest"
            )
        raise NonFiniteError(
            f"{stopped} after the run went back to a checkpoint {before} times "
            f"(stability.rollbacks). The weights of step {back.step}, the last good checkpoint, "
            f"are saved as those of step {step}. With {remedy} the same command goes on from there"
        )

    def _go_on_from(self, back: GoneBack, found: str) -> None:
        """Account for a rollback, and save: a restart must not fall back into what it left."""
        step = self.progress.step
        self._event(
            "rollback",
            f"{found}; too many such steps, so the weights of step {back.step}, after "
            f"{back.updates} updates, go on with the data after step {step}",
        )
        # What was learned since then is gone: those steps count as skipped.
        self.progress.counters.skipped_steps = step - back.updates
        self.progress.nats, self.progress.targets = 0.0, 0
        self._stability.rolled_back(to=back.step, at=step)
        self._save()

    def _event(self, word: str, detail: str) -> None:
        if distributed.is_first():
            log.warning("step %d, %s: %s", self.progress.step, word, detail)
            self._hooks.event(word, self.progress.step, detail)

    def _update(
        self, micros: Sequence[MicroBatch], agreed: AgreedStep, rates: dict[str, float]
    ) -> StepOutcome:
        """Forward and backward of every micro-batch, then one update."""
        # The engine averages gradients over the ranks; the loss must be a mean over the label
        # tokens of the whole global step, whichever rank they lie on.
        scale = distributed.world_size() / agreed.num_targets
        for number, micro in enumerate(micros, start=1):
            self._engine.begin_micro(last=number == len(micros))
            loss_sum = self._engine.forward(self._inputs(micro))
            self._engine.backward(loss_sum * scale)
        self._hooks.copied()
        return self._engine.apply(rates)

    def _inputs(self, micro: MicroBatch) -> dict[str, Any]:
        device = self._engine.device
        return {
            "ids": micro.ids.to(device, non_blocking=True),
            "positions": micro.positions.to(device, non_blocking=True),
            "segments": micro.segments.to(device, non_blocking=True),
            # The head looks for labels on the CPU: on the device that would be a synchronisation.
            "targets": micro.targets,
            "image_positions": micro.image_positions.to(device, non_blocking=True),
            # On the CPU too: where each tile's tokens go is worked out there.
            "features": {**self._towers.encode(micro.images), "grids": micro.grids},
        }

    def _advance(self, plan: StepPlan, agreed: AgreedStep, *, skipped: bool) -> None:
        counters = self.progress.counters
        for modality in ("language", "multimodal"):
            counters.tokens[modality] += agreed.tokens[modality]
            counters.planned_tokens[modality] += plan.tokens.get(modality, 0)
            counters.supervised[modality] += agreed.targets[modality]
        for pack in plan.packs:
            for piece in pack.pieces:
                counters.samples[self._modality_of_number[piece.source].value] += 1
        for fault in agreed.faults:
            if fault.action == "hole":
                counters.samples[self._modalities[fault.origin.source].value] -= 1
        counters.images += agreed.images
        counters.packs += len(plan.packs)
        counters.holes += agreed.holes
        counters.skipped_steps += int(skipped)
        self.progress.step += 1
        self.progress.cursor = plan.cursor_after
        self.progress.chain = agreed.chain

    def _row(
        self,
        plan: StepPlan,
        agreed: AgreedStep,
        outcome: StepOutcome | None,
        rates: dict[str, float],
        routed: dict[str, Any] | None,
        *,
        begin: float,
        waited: float,
    ) -> StepRow:
        return StepRow(
            step=self.progress.step,
            time=time.time(),
            stage=self._stage,
            loss=outcome.loss if outcome else None,
            lr=rates,
            grad_norm=outcome.grad_norm if outcome else None,
            modality=_value(plan.modality),
            tokens=agreed.tokens,
            planned_tokens={m: plan.tokens.get(m, 0) for m in ("language", "multimodal")},
            supervised=agreed.targets,
            images=agreed.images,
            packs=len(plan.packs),
            holes=agreed.holes,
            language_share_target=plan.language_share_target,
            language_share_realised=self.progress.counters.language_share(self._unit),
            digest=agreed.digest,
            chain=agreed.chain,
            seconds=time.monotonic() - begin,
            data_wait_seconds=waited,
            skipped=outcome is None or not outcome.finite,
            # Nothing was computed where nothing could be learned.
            model_flops=self._hooks.flops(plan, agreed) if outcome else 0.0,
            rank_imbalance=self._hooks.imbalance(plan),
            routers=routed,
            slots=agreed.slots,
        )


def _value(modality: Modality | None) -> str | None:
    return modality.value if modality else None
