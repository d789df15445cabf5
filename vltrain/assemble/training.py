"""One stage of training, assembled: the table of contents of a run.

In: a checked config and the stage numbers that it may start from. Out: the stage, trained to its
end (``train_stage``). Everything that must fail fails while it is assembled, before the first step:
data, weights, contract, resume. From the moment that the processes have met each other a watchdog
is told what each does, so that none waits for ever for one that hangs.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from vltrain import distributed
from vltrain.assemble import routers
from vltrain.assemble.datapath import DataPath, open_data
from vltrain.assemble.identity import (
    Identity,
    expected_of,
    model_digest,
    refuse_other,
    warn_of_changes,
)
from vltrain.assemble.occupied import occupied
from vltrain.assemble.provenance import lineage
from vltrain.assemble.recording import Recording, show_masked_examples
from vltrain.assemble.run_peak import run_peak
from vltrain.assemble.stage_run import Training, updates_in, watchdog_of
from vltrain.assemble.weights import (
    from_files,
    load_parts,
    masters_of,
    refuse_unasked_random,
    trained_records,
)
from vltrain.checkpoint import rng
from vltrain.checkpoint.handoff import HandOff, continue_from, hand_off
from vltrain.checkpoint.manifest import ParamRecord
from vltrain.checkpoint.reader import check_fits
from vltrain.checkpoint.store import Checkpoint, CheckpointStore
from vltrain.data.assign import micro_batches_per_rank
from vltrain.data.repetition import repetition_warnings
from vltrain.engine.engine import Engine, build_engine
from vltrain.engine.render import frozen_dtype, parameter_dtype
from vltrain.engine.sharding import sharing
from vltrain.engine.start import start
from vltrain.errors import CheckpointError, DataError
from vltrain.logs import setup_logging
from vltrain.models.build import BuiltModel, build_model
from vltrain.models.trainable import part_of, parts_of
from vltrain.optim.groups import parameter_groups
from vltrain.runconfig import Accept, Resume, RunConfig, given_weights
from vltrain.train.signals import StopRequest
from vltrain.train.watchdog import Watchdog

log = logging.getLogger(__name__)


def train_stage(
    config: RunConfig, *, predecessors: Collection[int], may_be_new: Collection[str]
) -> None:
    """Join the other processes, assemble the stage and train it to its end. ``predecessors`` and
    ``may_be_new``: see ``assemble_training``."""
    setup_logging(rank=int(os.environ.get("RANK", "0")))
    stop = StopRequest()
    with distributed.answered(), contextlib.ExitStack() as afterwards:
        device = start(config.engine)
        with stop.listening(), watchdog_of(config.engine) as watchdog:
            if distributed.is_first():
                afterwards.enter_context(occupied(config.run_dir))
            training = assemble_training(
                config,
                device=device,
                predecessors=predecessors,
                may_be_new=may_be_new,
                watchdog=watchdog,
                stop=stop,
            )
            # Last of all: the others must know the reason of an end before wandb has sent its rest.
            afterwards.callback(training.close)
            training.run()


def assemble_training(
    config: RunConfig,
    *,
    device: torch.device,
    predecessors: Collection[int],
    may_be_new: Collection[str],
    watchdog: Watchdog,
    stop: StopRequest,
) -> Training:
    """Build a stage of training in the run directory, which is there, or raise what is wrong with
    it; ``watchdog`` is told what is being done. ``predecessors``: stage numbers that it may start
    from (0: published weights). ``may_be_new``: parts that may start from the seed."""

    def doing(what: str) -> None:
        limit = config.engine.start_seconds
        watchdog.doing(f"starting: {what}", alone=True, end_seconds=limit)

    doing("finding the checkpoint")
    distributed.barrier()  # the first rank has made the run directory
    store = CheckpointStore(config.run_dir / "checkpoints", config=config.checkpoint)
    resumed = _resumed(config, store)
    doing("opening the data")
    data = _open_data(config)
    identity = Identity(
        recipe=data.recipe.digest,
        model=model_digest(config.model),
        tokenizer=data.encoder.tokenizer.digest,
        seed=config.run.seed,
    )
    accepted = set()
    if resumed is not None:
        accepted = refuse_other(config, identity, resumed)
        warn_of_changes(config, resumed)
    origins = _origins(config, data, resumed=resumed, predecessors=predecessors)
    if resumed is None:
        refuse_unasked_random(config.model, origins, may_be_new=may_be_new)
    doing("building the model")
    built = _built(config, origins, device)
    params = _params(config, built)
    if resumed is not None:
        shapes = {n: tuple(p.shape) for n, p in built.named_parameters() if p.requires_grad}
        check_fits(resumed.directory, resumed.manifest, trainable=shapes)
    doing("loading the weights")
    records, digests = load_parts(
        built,
        origins,
        trainable=config.stage.trainable,
        recorded=trained_records(resumed) if resumed is not None else {},
    )
    earlier = resumed or origins.predecessor
    if earlier is not None:
        routers.restore(built, earlier.manifest)
    distributed.barrier()  # the engine's own exchanges wait less long for a slow reader
    doing("starting the engine")
    engine = _engine(config, built, device)
    doing("restoring masters and optimizer")
    _restore(config, engine, origins, resumed)
    _restore_rng(config, resumed)
    doing("showing what is learned and opening the run's files")
    show_masked_examples(config, data)
    recording = Recording(config, resumed=resumed, peak_flops=run_peak(config, device))
    if resumed is not None and _begins_anew(accepted):
        recording.other_data(resumed.manifest)
    return Training(
        config,
        data=data,
        built=built,
        engine=engine,
        store=store,
        recording=recording,
        identity=identity,
        records=records,
        digests=digests,
        params=params,
        lineage=lineage(resumed, predecessor=origins.predecessor),
        resumed=resumed,
        cursor=_cursor(data, resumed, accepted),
        watchdog=watchdog,
        stop=stop,
    )


def _resumed(config: RunConfig, store: CheckpointStore) -> Checkpoint | None:
    """The checkpoint that the run goes on from, as ``resume`` asks."""
    newest = store.newest()
    if config.resume.mode is Resume.required and newest is None:
        raise CheckpointError(
            f"resume=required, and {store.directory} has no checkpoint. Check run.name and "
            "run.root, or use resume=auto to start anew"
        )
    if config.resume.mode is Resume.never and newest is not None:
        raise CheckpointError(
            f"resume=never, and {config.run_dir} already has a checkpoint of step "
            f"{newest.manifest.step}. Give another run.name, or use resume=auto to continue it"
        )
    if newest is not None:
        log.info("resuming from %s", newest.directory)
    return newest


def _begins_anew(accepted: Collection[Accept]) -> bool:
    """Whether what was accepted as other gives the data another order."""
    return bool({Accept.recipe, Accept.seed} & set(accepted))


def _cursor(
    data: DataPath, resumed: Checkpoint | None, accepted: Collection[Accept]
) -> dict[str, Any] | None:
    """Where the data goes on. Data that was accepted as other begins at its own beginning: places
    in the old order mean nothing in the new one."""
    if resumed is None or not _begins_anew(accepted):
        return resumed.manifest.cursor if resumed is not None else None
    log.warning(
        "the new data recipe begins at its own beginning, at step %d", resumed.manifest.step
    )
    sums = resumed.manifest.counters["sums"]
    return data.plan.cursor_at(
        step=resumed.manifest.step,
        packs=sums["packs"],
        tokens=sum(sums["planned_tokens"].values()),
    )


def _open_data(config: RunConfig) -> DataPath:
    """As ``open_data``; every rank opens the same catalogs, so the first may speak for all."""
    try:
        data = open_data(config)
    except DataError as error:
        error.on_all_ranks = True
        raise
    for warning in repetition_warnings(data.plan, config.optim.steps):
        log.warning("%s", warning)
    return data


def _origins(
    config: RunConfig,
    data: DataPath,
    *,
    resumed: Checkpoint | None,
    predecessors: Collection[int],
) -> HandOff:
    parts = parts_of(config.model)
    given = given_weights(config.model)
    weights = {part: given[part] for part in parts}
    if resumed is not None:
        return continue_from(resumed, weights=weights, parts=parts)
    return hand_off(
        Path(config.init_from) if config.init_from is not None else None,
        weights=weights,
        parts=parts,
        predecessors=predecessors,
        expected=expected_of(config, data.encoder),
    )


def _built(config: RunConfig, origins: HandOff, device: torch.device) -> BuiltModel:
    return build_model(
        config.model,
        trainable=config.stage.trainable,
        freeze=config.stage.freeze,
        dtype=getattr(torch, parameter_dtype(config.engine)),
        frozen_dtype=getattr(torch, frozen_dtype(config.engine)),
        device=device,
        seed=config.run.seed,
        unfilled=from_files(origins),
        keep=sharing(config.engine, device=device),
    )


def _params(config: RunConfig, built: BuiltModel) -> dict[str, ParamRecord]:
    """Every parameter that a checkpoint holds; taken before they may be shared out."""
    return {
        name: ParamRecord(
            shape=tuple(parameter.shape),
            dtype="float32" if parameter.requires_grad else str(parameter.dtype).split(".")[-1],
            part=part_of(name),
        )
        for name, parameter in built.module.named_parameters()
        if part_of(name) in config.stage.trainable
    }


def _engine(config: RunConfig, built: BuiltModel, device: torch.device) -> Engine:
    groups = parameter_groups(built.module.named_parameters(), part_of=part_of, config=config.optim)
    batch = config.data.batch
    return build_engine(
        built.module,
        groups=groups,
        config=config.engine,
        clip_norm=config.optim.clip_norm,
        micro_batch_size=batch.micro,
        micro_batches_per_step=micro_batches_per_rank(
            batch.sequences, world=distributed.world_size(), micro=batch.micro
        ),
        device=device,
    )


def _restore(
    config: RunConfig, engine: Engine, origins: HandOff, resumed: Checkpoint | None
) -> None:
    """Masters, moments and count of a resumed run; masters alone of what another run starts
    with."""
    if resumed is not None:
        engine.import_state(resumed.reader(), updates=updates_in(resumed))
        return
    dtype = getattr(torch, parameter_dtype(config.engine))
    masters = masters_of(origins, config=config.model, dtype=dtype)
    if masters is not None:
        engine.import_state(masters, updates=None)


def _restore_rng(config: RunConfig, resumed: Checkpoint | None) -> None:
    """Last, so that nothing that is built draws from it."""
    rank, world = distributed.rank(), distributed.world_size()
    rng.seed_generators(config.run.seed, rank=rank)
    states = resumed.rng(rank, world=world) if resumed is not None else None
    if states is not None:
        rng.restore(states)
