"""A trained run, found, and loaded to be asked or evaluated: one process, no engine.

In: a run directory, or one of its checkpoints. Out: the model with every part in place, and the
encoder that it was trained with. Memory: one copy of the weights (``find_run``: none).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vltrain.assemble.datapath import build_encoder, open_tokenizer
from vltrain.assemble.identity import expected_of
from vltrain.assemble.routers import restore
from vltrain.assemble.weights import from_files, load_parts, trained_records
from vltrain.checkpoint.handoff import HandOff, check_same, continue_from, refuse_replaced
from vltrain.checkpoint.manifest import MANIFEST
from vltrain.checkpoint.store import Checkpoint, CheckpointStore, open_checkpoint, run_of
from vltrain.errors import CheckpointError
from vltrain.models.build import BuiltModel, build_model
from vltrain.models.trainable import parts_of
from vltrain.processing.encode import Encoder
from vltrain.runconfig import RunConfig, from_file, given_weights


@dataclass(frozen=True, kw_only=True)
class FoundRun:
    """A run whose config, tokenizer and checkpoint belong together; nothing of its weights is read.

    directory: of the run; of a checkpoint that was copied away from its run, the checkpoint's own.
    checkpoint: which of its checkpoints is meant. origins: where each part lies.
    """

    directory: Path
    config: RunConfig
    checkpoint: Checkpoint
    encoder: Encoder
    origins: HandOff


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """directory: of the run. checkpoint: which of its checkpoints was loaded."""

    directory: Path
    config: RunConfig
    checkpoint: Checkpoint
    built: BuiltModel
    encoder: Encoder


def find_run(directory: Path, *, overrides: Sequence[str] = ()) -> FoundRun:
    """The newest checkpoint of a run, or the checkpoint that ``directory`` is.

    overrides: ``key=value`` words over the run's config; ``model.weights.PART`` names where a
    frozen part's weights are now, ``model.tokenizer`` the same for the tokenizer. Raises
    CheckpointError where there is no checkpoint, ContractError where the tokenizer or the model is
    not the one that the run was trained with, or the weights of a trained part would be replaced.
    """
    run_directory, checkpoint = _find(directory)
    config = from_file(run_directory / "config.yaml", overrides=overrides)
    encoder = build_encoder(config, open_tokenizer(config))
    check_same(checkpoint, expected=expected_of(config, encoder))
    moved = _moved(config, from_file(run_directory / "config.yaml"))
    for part in trained_records(checkpoint):
        refuse_replaced(checkpoint, part, override=moved.get(part))
    return FoundRun(
        directory=run_directory,
        config=config,
        checkpoint=checkpoint,
        encoder=encoder,
        origins=continue_from(checkpoint, weights=moved, parts=parts_of(config.model)),
    )


def load_run(directory: Path, *, overrides: Sequence[str] = ()) -> LoadedRun:
    """Load what ``find_run`` finds. Raises what it raises, ContractError where a frozen part's
    weights are not those that the run was trained with, and CheckpointError where the corrections
    of its routers are of another model."""
    found = find_run(directory, overrides=overrides)
    built = build_model(
        found.config.model,
        trainable=(),
        freeze=(),
        dtype=torch.float32,
        frozen_dtype=torch.float32,
        device="cuda" if torch.cuda.is_available() else "cpu",
        seed=found.config.run.seed,
        unfilled=from_files(found.origins),
    )
    recorded = trained_records(found.checkpoint)
    load_parts(built, found.origins, trainable=(), recorded=recorded)
    restore(built, found.checkpoint.manifest)
    return LoadedRun(
        directory=found.directory,
        config=found.config,
        checkpoint=found.checkpoint,
        built=built,
        encoder=found.encoder,
    )


def _moved(config: RunConfig, written: RunConfig) -> dict[str, str | None]:
    """model.weights by part where ``config`` says something else than the run wrote down; None
    elsewhere: the checkpoint knows where the weights were."""
    before = given_weights(written.model)
    return {
        part: path if path != before[part] else None
        for part, path in given_weights(config.model).items()
    }


def _find(directory: Path) -> tuple[Path, Checkpoint]:
    if (directory / MANIFEST).is_file():
        return run_of(directory), open_checkpoint(directory)
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
