"""One stage of training, ready to run: the loop with its hooks tied to files, checkpoints and
proofs.

In: assembled objects. Out: the trained stage, its checkpoints, and summary.json, which says what
trained and proves by per-tensor digest that what is frozen did not change.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import xxhash

from vltrain import distributed
from vltrain.assemble import routers
from vltrain.assemble.datapath import DataPath, step_loader
from vltrain.assemble.frozen import FrozenDigests, frozen_digests, refuse_changed, summarise
from vltrain.assemble.identity import CONFIG, Identity
from vltrain.assemble.provenance import data_record, recipe_record
from vltrain.assemble.recording import Recording
from vltrain.assemble.shapes import model_shape
from vltrain.batch import Fault, StepPlan
from vltrain.checkpoint import rng
from vltrain.checkpoint.background import BackgroundWriter
from vltrain.checkpoint.health import Health
from vltrain.checkpoint.manifest import Manifest, ParamRecord, PartRecord, versions
from vltrain.checkpoint.store import Checkpoint, CheckpointStore
from vltrain.data.faults import FaultBudget
from vltrain.engine.config import EngineConfig
from vltrain.engine.engine import Engine, StepOutcome
from vltrain.metrics.summary import write_summary
from vltrain.metrics.throughput import Work, count_flops
from vltrain.models.build import BuiltModel
from vltrain.models.trainable import describe, part_of
from vltrain.optim.schedules import learning_rate
from vltrain.runconfig import RunConfig, to_yaml
from vltrain.train.agree import AgreedStep
from vltrain.train.counters import Counters
from vltrain.train.loop import Doing, GoneBack, Hooks, Progress, Trainer
from vltrain.train.signals import StopRequest
from vltrain.train.stability import Stability
from vltrain.train.watchdog import Limits, Watchdog

log = logging.getLogger(__name__)


class Training:
    """A stage ready to run. Built by ``assemble_training``."""

    def __init__(
        self,
        config: RunConfig,
        *,
        data: DataPath,
        built: BuiltModel,
        engine: Engine,
        store: CheckpointStore,
        recording: Recording,
        identity: Identity,
        records: Mapping[str, PartRecord],
        digests: Mapping[str, Mapping[str, str]],
        params: Mapping[str, ParamRecord],
        lineage: Sequence[dict[str, Any]],
        resumed: Checkpoint | None,
        cursor: Mapping[str, Any] | None,
        watchdog: Watchdog,
        stop: StopRequest,
    ) -> None:
        self.config = config
        self.data = data
        self.built = built
        self.engine = engine
        self._store = store
        self._writer = BackgroundWriter(
            store,
            group=distributed.open_group(timeout_seconds=config.checkpoint.write_timeout_seconds),
        )
        self._recording = recording
        self._identity = identity
        self._records = dict(records)
        self._digests = digests
        self._params = dict(params)
        self._lineage = list(lineage)
        self._data_record = data_record(config)
        self._shape = model_shape(config.model)
        self._imbalances: dict[int, float] = {}  # of steps that are planned and not trained yet
        self._watchdog = watchdog
        self._stop = stop
        self.progress = _progress(resumed, cursor=cursor)
        self._budget = FaultBudget(
            config.data.faults,
            ledger=config.run_dir / "ledger.jsonl",
            state=resumed.manifest.counters["faults"] if resumed is not None else None,
        )
        self._stability = Stability(
            config.stability,
            state=resumed.manifest.counters.get("stability") if resumed is not None else None,
        )
        self._before = frozen_digests(engine, built)
        self._counts = describe([engine.module, built.frozen])

    def run(self) -> Progress:
        """Train to the end of the stage, then prove that what is frozen did not change."""
        self._say_what_trains()
        with contextlib.closing(self._writer):
            if self.progress.step < self.config.optim.steps:
                self.progress = self._trainer().run()
            else:
                log.info("stage already finished at step %d", self.progress.step)
            self._watchdog.doing("checking what is frozen", alone=False)
            after = frozen_digests(self.engine, self.built)
        refuse_changed(self._before, after)
        self._summarise(after)
        log.info(
            "frozen: %d tensors bit-identical to the start (per-tensor xxh3-128)",
            len(after.tensors),
        )
        distributed.barrier()  # none leaves while another still reads the store
        return self.progress

    def close(self) -> None:
        """Close the run's files and let wandb send its rest."""
        self._recording.close()

    def _trainer(self) -> Trainer:
        config, watchdog = self.config, self._watchdog
        loader = step_loader(
            config,
            self.data,
            cursor=self.progress.cursor,
            rank=distributed.rank(),
            world=distributed.world_size(),
            imbalances=self._imbalances if distributed.is_first() else None,
        )

        def doing(what: Doing, step: int) -> None:
            alone = what is Doing.data
            detail = loader.waiting_for if alone else str
            watchdog.doing(f"{what.value}, step {step}", alone=alone, detail=detail)

        hooks = Hooks(
            row=self._recording.row,
            faults=self._count_faults,
            save=self._save,
            copied=lambda: self._writer.copied(
                waiting=lambda: watchdog.doing("waiting for the checkpoint's copy", alone=True)
            ),
            save_failed=self._writer.failed,
            settle=self._settle,
            learning_rates=self._learning_rates,
            flops=self._flops,
            imbalance=lambda plan: self._imbalances.pop(plan.step),
            roll_back=self._roll_back,
            routers=self._finish_routers,
            event=self._recording.event,
            stop=self._stop.name,
            doing=doing,
        )
        return Trainer(
            stage=config.stage.name,
            unit=config.data.mixture.unit,
            modalities={name: s.modality for name, s in config.data.sources.items()},
            engine=self.engine,
            towers=self.built.frozen,
            loader=loader,
            hooks=hooks,
            progress=self.progress,
            stability=self._stability,
            steps=config.optim.steps,
            save_every=config.checkpoint.every_steps,
        )

    def _finish_routers(self, step: int, outcome: StepOutcome | None) -> dict[str, Any] | None:
        updated = outcome is not None and outcome.finite
        shown = step % self.config.metrics.log_every == 0
        return routers.finish_step(self.built, updated=updated, with_loads=shown)

    def _learning_rates(self, step: int) -> dict[str, float]:
        return {
            part: learning_rate(step, config=self.config.optim, part=part)
            for part in self.engine.parts
        }

    def _flops(self, plan: StepPlan, agreed: AgreedStep) -> float:
        """Operations of the step, for throughput and MFU. Padding is left out; of a hole the square
        of its length stays in."""
        work = Work(
            squares=agreed.squares,
            tokens=sum(agreed.tokens.values()),
            targets=agreed.num_targets,
            sum_squared_document_tokens=sum(p.tokens**2 for k in plan.packs for p in k.pieces),
        )
        return count_flops(self._shape, trained=self.config.stage.trainable, work=work).total

    def _count_faults(self, plan: StepPlan, faults: tuple[Fault, ...]) -> dict[str, int]:
        """On every rank, with the same gathered faults, so that all stop together. The running
        totals by source."""
        names = list(self.config.data.sources)
        read = Counter(names[piece.source] for pack in plan.packs for piece in pack.pieces)
        self._recording.faults(plan.step + 1, faults)
        self._budget.count(read=read, faults=faults)
        return self._budget.bad()

    def _save(self, progress: Progress) -> None:
        def waiting() -> None:
            what = f"waiting for the checkpoint before step {progress.step}"
            self._watchdog.doing(what, alone=False)

        self._recording.sync()
        self._writer.save(
            self._manifest(progress),
            self.engine.export_fragments(
                frozen=lambda name: part_of(name) in self.config.stage.trainable
            ),
            tensor_digests=self._digests,
            texts={CONFIG: to_yaml(self.config)},
            rng=rng.capture(),
            waiting=waiting,
        )
        if not self.config.checkpoint.background:
            self._writer.settle(waiting=waiting)

    def _settle(self) -> None:
        self._writer.settle(
            waiting=lambda: self._watchdog.doing("waiting for the checkpoint", alone=False)
        )

    def _roll_back(self) -> GoneBack | None:
        """Weights and optimizer of the last good checkpoint."""
        self._settle()
        checkpoint = self._store.last_good(
            updates=_updates(self.progress), left=self._stability.left
        )
        if checkpoint is None:
            return None
        updates = updates_in(checkpoint)
        self.engine.import_state(checkpoint.reader(), updates=updates)
        routers.restore(self.built, checkpoint.manifest)
        if distributed.is_first():
            log.warning("weights and optimizer are those of %s again", checkpoint.directory)
        return GoneBack(step=checkpoint.manifest.step, updates=updates)

    def _manifest(self, progress: Progress) -> Manifest:
        config = self.config
        encoder = self.data.encoder
        return Manifest(
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            step=progress.step,
            finished=progress.step >= config.optim.steps,
            stage={
                "number": config.stage.number,
                "name": config.stage.name,
                "trainable": list(config.stage.trainable),
            },
            run={
                "name": config.run.name,
                "dir": str(config.run_dir),
                "wandb_id": self._recording.wandb_id,
            },
            config_digest=xxhash.xxh3_128_hexdigest(to_yaml(config).encode()),
            model_digest=self._identity.model,
            tokenizer_digest=self._identity.tokenizer,
            image_token_id=config.model.image_token_id,
            geometry=encoder.geometry.digest_fields(),
            recipe_digest=self._identity.recipe,
            seed=config.run.seed,
            cursor=progress.cursor,
            chain_head=progress.chain,
            counters={
                "sums": progress.counters.to_json(),
                "faults": self._budget.state(),
                "stability": self._stability.state(),
                "routers": routers.state_of(self.built),
            },
            parts=self._records,
            params=self._params,
            metrics={"loss": progress.nats / progress.targets} if progress.targets else {},
            recipe=recipe_record(config),
            data=self._data_record,
            lineage=self._lineage,
            world={"size": distributed.world_size(), "zero_stage": config.engine.zero_stage},
            health=Health(
                updates=_updates(progress),
                skipped_lately=self._stability.skipped_lately(progress.step),
                left=self._stability.left,
            ),
            versions=versions(),
        )

    def _say_what_trains(self) -> None:
        for count in self._counts:
            log.info(
                "%-8s %13s parameters, %13s train",
                count.part,
                f"{count.parameters:,}",
                f"{count.trainable:,}",
            )
        log.info("trains: %s", ", ".join(_grouped(self.built.trainable)))
        self._summarise(None)

    def _summarise(self, after: FrozenDigests | None) -> None:
        if distributed.is_first():
            summary = summarise(
                number=self.config.stage.number,
                name=self.config.stage.name,
                steps=self.progress.step,
                init_from=self.config.init_from or "published weights",
                counts=self._counts,
                trainable=self.built.trainable,
                before=self._before,
                after=after,
            )
            write_summary(self.config.run_dir, summary=summary)


def watchdog_of(config: EngineConfig) -> Watchdog:
    """For this process, once it has met the others."""
    return Watchdog(
        distributed.open_board(timeout_seconds=config.timeout_seconds),
        rank=distributed.rank(),
        world=distributed.world_size(),
        limits=Limits(
            stall_seconds=config.stall_seconds,
            end_seconds=config.timeout_seconds,
            lost_seconds=config.lost_seconds,
        ),
    )


def updates_in(checkpoint: Checkpoint) -> int:
    """Updates that a checkpoint's weights have seen: its steps less those that were skipped."""
    return checkpoint.manifest.step - checkpoint.manifest.counters["sums"]["skipped_steps"]


def _updates(progress: Progress) -> int:
    """Updates that are in the weights."""
    return progress.step - progress.counters.skipped_steps


def _progress(resumed: Checkpoint | None, *, cursor: Mapping[str, Any] | None) -> Progress:
    """Where the run goes on, with the data from ``cursor`` on."""
    if resumed is None:
        return Progress()
    manifest = resumed.manifest
    return Progress(
        step=manifest.step,
        cursor=dict(cursor) if cursor is not None else None,
        chain=manifest.chain_head,
        counters=Counters.from_json(manifest.counters["sums"]),
    )


def _grouped(names: Sequence[str]) -> list[str]:
    """Tensor names by their first two words, with counts: what a person can read at a glance."""
    counted = Counter(".".join(name.split(".")[:2]) for name in names)
    return [f"{group} ({count} tensors)" for group, count in counted.items()]
