"""From the data config to planned, readable steps.

In: the run config. Out: tokenizer and encoder; opened sources, the recipe and the plan; the loader
of this rank's micro-batches. Opening reads catalogs only: nothing of the data itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vltrain.assemble.shapes import model_shape
from vltrain.batch import MicroBatchPlan, StepPlan
from vltrain.data.assign import WorkCost, assigned_to
from vltrain.data.config import SourceConfig
from vltrain.data.loader import MicroBatchDataset, StepLoader
from vltrain.data.pieces import PieceReader, PieceTable, check_modalities
from vltrain.data.plan import Plan
from vltrain.data.recipe import Recipe
from vltrain.data.remote import RemoteStore
from vltrain.data.sources import open_source
from vltrain.errors import ConfigError
from vltrain.metrics.throughput import Work, count_flops
from vltrain.processing.encode import Encoder, EncodeRules
from vltrain.processing.tokens import TextTokenizer
from vltrain.runconfig import RunConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DataPath:
    """Everything between the shards and the plan. ``tables`` are in recipe order."""

    encoder: Encoder
    recipe: Recipe
    plan: Plan
    reader: PieceReader
    tables: tuple[PieceTable, ...]
    remote: RemoteStore


def open_tokenizer(config: RunConfig) -> TextTokenizer:
    """The run's tokenizer. Raises ConfigError where none is named, its image token does not fit, or
    it has ids without a row of the embedding."""
    directory = config.model.tokenizer or config.model.weights.language
    if directory is None:
        raise ConfigError(
            "no tokenizer: set model.tokenizer=DIRECTORY (with tokenizer.json), or "
            "model.weights.language=DIRECTORY of a published model that brings one"
        )
    tokenizer = TextTokenizer.load(
        directory,
        image_token=config.model.image_token,
        image_token_id=config.model.image_token_id,
    )
    rows = config.model.language.vocab_size
    if tokenizer.vocab_size > rows:
        raise ConfigError(
            f"the tokenizer in {directory} has ids up to {tokenizer.vocab_size - 1}, and "
            f"model.language.vocab_size={rows} gives the embedding rows up to {rows - 1} only: set "
            "model.tokenizer to this model's own, or choose the model that the tokenizer belongs to"
        )
    return tokenizer


def build_encoder(config: RunConfig, tokenizer: TextTokenizer) -> Encoder:
    """The encoder that ``prepare`` measures with and the loader reads with."""
    packing = config.data.packing
    return Encoder(
        tokenizer,
        geometry=config.model.geometry,
        rules=EncodeRules(
            learn=config.stage.learn,
            template=config.stage.template,
            system_prompt=config.stage.system_prompt or "",
            sequence_length=packing.sequence_length,
            image_tokens_on_top=packing.image_tokens_on_top,
            max_images=packing.max_images,
            box_rounding=config.stage.box_rounding,
        ),
    )


def open_data(config: RunConfig) -> DataPath:
    """Open every source of the mix. Raises DataError or ConfigError; see the modules that check."""
    encoder = build_encoder(config, open_tokenizer(config))
    remote = RemoteStore(config.data.remote)
    opened = [
        open_source(name, source, remote=remote) for name, source in config.data.sources.items()
    ]
    tables = tuple(PieceTable(source, encoder_digest=encoder.digest) for source in opened)
    check_modalities(tables)
    recipe = Recipe(tables, config=config.data)
    for table in tables:
        if excluded := sum(map(len, table.excluded)):
            log.warning(
                "source %s: prepare excluded %d records that cannot be used (listed in its "
                "catalog); %d samples remain",
                table.name,
                excluded,
                table.num_samples,
            )
    return DataPath(
        encoder=encoder,
        recipe=recipe,
        plan=Plan(recipe, seed=config.run.seed),
        reader=PieceReader(opened, tables=tables, encoder=encoder),
        tables=tables,
        remote=remote,
    )


def open_held_out(config: RunConfig, data: DataPath) -> tuple[PieceTable, ...]:
    """The held-out sources' tables. Raises DataError where one is not prepared."""
    digest = data.encoder.digest
    return tuple(
        PieceTable(open_source(name, source, remote=data.remote), encoder_digest=digest)
        for name, source in config.data.held_out.items()
    )


def micro_batch_dataset(config: RunConfig, data: DataPath) -> MicroBatchDataset:
    """Planned micro-batches to read ones: what the loader's workers run."""
    return MicroBatchDataset(
        data.reader,
        modalities=[source.modality for source in config.data.sources.values()],
        image_token_id=config.model.image_token_id,
        image_side=config.model.image_side,
        pad_color=config.model.pad_color,
        rounding=config.model.image_rounding.value,
        decode=config.data.decode,
    )


def step_loader(
    config: RunConfig,
    data: DataPath,
    *,
    cursor: Mapping[str, Any] | None,
    rank: int,
    world: int,
    imbalances: dict[int, float] | None = None,
) -> StepLoader:
    """This rank's share of every step from ``cursor`` on. imbalances: gets that of each step that
    is planned, by ``StepPlan.step``, for someone who takes it out again (None: nobody does)."""
    dataset = micro_batch_dataset(config, data)
    cost, micro = work_cost(config), config.data.batch.micro

    def shares() -> Iterator[tuple[StepPlan, tuple[MicroBatchPlan, ...]]]:
        for step in data.plan.steps(dict(cursor) if cursor is not None else None):
            if step.step >= config.optim.steps:
                return
            mine = assigned_to(step, world=world, micro=micro, rank=rank, cost=cost)
            if imbalances is not None:
                imbalances[step.step] = mine.imbalance
            yield step, mine.micros

    return StepLoader(
        shares(),
        dataset=dataset,
        workers=config.data.loader.workers,
        prefetch_steps=config.data.loader.prefetch_steps,
    )


def work_cost(config: RunConfig) -> WorkCost:
    """Operations of one token, one squared token and the vision side's for one image token, for
    this model and stage."""
    shape, trained = model_shape(config.model), set(config.stage.trainable)

    def language(**work: int) -> float:
        nothing = {"squares": 0, "tokens": 0, "targets": 0, "sum_squared_document_tokens": 0}
        return count_flops(shape, trained=trained, work=Work(**{**nothing, **work})).total

    return WorkCost(
        token=language(tokens=1),
        token_squared=language(sum_squared_document_tokens=1),
        image_token=language(squares=1) / config.model.visual_grid**2,
    )


def sources_to_prepare(config: RunConfig) -> dict[str, SourceConfig]:
    """The mix's and the held-out sources under one name each. Raises ConfigError where two would
    have the same."""
    held_out = {f"held_out_{name}": source for name, source in config.data.held_out.items()}
    if both := sorted(config.data.sources.keys() & held_out.keys()):
        raise ConfigError(
            f"data.sources.{both[0]} has the name that data.held_out."
            f"{both[0].removeprefix('held_out_')} gets in prepare's reports; give one another name"
        )
    return {**config.data.sources, **held_out}


def tokenizer_directory(config: RunConfig) -> Path:
    """Where the tokenizer's files lie (``open_tokenizer`` has checked that there are some)."""
    return Path(config.model.tokenizer or config.model.weights.language or "")
