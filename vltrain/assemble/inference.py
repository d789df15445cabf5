"""A trained run, loaded to be asked, evaluated or exported: one process, no engine.

In: a run directory, or one of its checkpoints. Out: the model with every part in place, and the
encoder that it was trained with. Memory: one copy of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vltrain.assemble.datapath import build_encoder, open_tokenizer
from vltrain.assemble.weights import load_parts
from vltrain.checkpoint.handoff import continue_from
from vltrain.checkpoint.manifest import MANIFEST
from vltrain.checkpoint.store import Checkpoint, CheckpointStore, open_checkpoint
from vltrain.errors import CheckpointError
from vltrain.models.build import BuiltModel, build_model
from vltrain.models.trainable import parts_of
from vltrain.processing.encode import Encoder
from vltrain.runconfig import RunConfig, from_file


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """directory: of the run. checkpoint: which of its checkpoints was loaded."""

    directory: Path
    config: RunConfig
    checkpoint: Checkpoint
    built: BuiltModel
    encoder: Encoder


def load_run(directory: Path, *, overrides: Sequence[str] = ()) -> LoadedRun:
    """Load the newest checkpoint of a run, or the checkpoint that ``directory`` is.

    overrides: ``key=value`` words over the run's config. Raises CheckpointError where there is
    none, ContractError where a frozen part's weights are no longer those that the run was trained
    beside.
    """
    run_directory, checkpoint = _find(directory)
    config = from_file(run_directory / "config.yaml", overrides=overrides)
    parts = parts_of(config.model)
    built = build_model(
        config.model,
        trainable=(),
        freeze=(),
        dtype=torch.float32,
        frozen_dtype=torch.float32,
        device="cuda" if torch.cuda.is_available() else "cpu",
        seed=config.run.seed,
    )
    origins = continue_from(checkpoint, weights=dict.fromkeys(parts), parts=parts)
    load_parts(built, origins, trainable=())
    return LoadedRun(
        directory=run_directory,
        config=config,
        checkpoint=checkpoint,
        built=built,
        encoder=build_encoder(config, open_tokenizer(config)),
    )


def _find(directory: Path) -> tuple[Path, Checkpoint]:
    if (directory / MANIFEST).is_file():
        return directory.resolve().parents[1], open_checkpoint(directory)
    if not (directory / "config.yaml").is_file():
        raise CheckpointError(
            f"{directory} is neither a run directory (with config.yaml and checkpoints/) nor a "
            "checkpoint of one"
        )
    config = from_file(directory / "config.yaml").checkpoint
    newest = CheckpointStore(directory / "checkpoints", config=config).newest()
    if newest is None:
        raise CheckpointError(f"{directory} has no complete checkpoint yet; train it further")
    return directory, newest
