"""What a stage starts from: each part of the model resolved to files and a digest.

In: ``init_from`` (a run directory, one of its checkpoints, a published directory, or nothing), the
paths of ``model.weights``, and what this stage expects. Out: for every part its origin, after the
contract was checked: right predecessor, same tokenizer, image token, geometry and model. Weights
only: the optimizer, the plan and the counters of the predecessor end with it. Loading and digesting
the tensors is the caller's; ``HandOff.check_digest`` holds what was found against what was
recorded.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from vltrain.checkpoint.config import CheckpointConfig
from vltrain.checkpoint.manifest import MANIFEST, Manifest
from vltrain.checkpoint.reader import read_part_state
from vltrain.checkpoint.store import (
    Checkpoint,
    CheckpointStore,
    not_finite,
    open_checkpoint,
    verify,
)
from vltrain.errors import CheckpointError, ContractError

log = logging.getLogger(__name__)

PUBLISHED = 0
"""Stands among the predecessors for published weights of each part."""


class OriginKind(str, Enum):
    published = "published"  # a directory in a published layout
    checkpoint = "checkpoint"  # inside the predecessor's checkpoint, as fp32 fragments
    fresh = "fresh"  # initialised from the seed


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What must be the same in the predecessor as here."""

    tokenizer_digest: str
    image_token_id: int
    geometry: Mapping[str, Any]
    model_digest: str


@dataclass(frozen=True, kw_only=True)
class PartOrigin:
    """path: the directory (None when fresh). digest: the part digest that its tensors must have,
    None where nothing recorded one (published weights met for the first time; the checkpoint's own
    files, whose bytes were verified)."""

    part: str
    kind: OriginKind
    path: Path | None
    digest: str | None


@dataclass(frozen=True, kw_only=True)
class HandOff:
    """Origins of all parts, and the predecessor they come from, if any."""

    predecessor: Checkpoint | None
    parts: dict[str, PartOrigin]

    def part_state(self, part: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Whole tensors of a part whose origin is the checkpoint."""
        assert self.predecessor is not None, f"{part} has no predecessor"
        return read_part_state(self.predecessor.directory, self.predecessor.manifest, part=part)

    def check_digest(self, part: str, *, found: str) -> None:
        """Raise ContractError where the tensors loaded for a part are not the recorded ones."""
        origin = self.parts[part]
        if origin.digest is not None and found != origin.digest:
            assert self.predecessor is not None, f"a digest of {part} without a predecessor"
            raise ContractError(
                f"The weights of {part} at {origin.path} have the digest {found}, but "
                f"{self.predecessor.directory} was trained beside {origin.digest}. Give the "
                f"unchanged weights with model.weights.{part}=PATH."
            )


def hand_off(
    init_from: Path | None,
    *,
    weights: Mapping[str, str | None],
    parts: Collection[str],
    predecessors: Collection[int],
    expected: Expected,
) -> HandOff:
    """Resolve every part (collective). ``weights``: model.weights by part, None where not given.
    ``predecessors``: stage numbers that this stage may start from, 0 for published weights.

    Raises ContractError where the predecessor is not one, or an override names other weights than
    the predecessor recorded; CheckpointError where the checkpoint is damaged.
    """
    if init_from is None or _is_published(init_from):
        return _from_published(init_from, weights=weights, parts=parts, predecessors=predecessors)
    checkpoint = _find(init_from)
    check_contract(checkpoint, predecessors=predecessors, expected=expected)
    return HandOff(
        predecessor=checkpoint,
        parts={part: _origin(checkpoint, part, override=weights.get(part)) for part in parts},
    )


def continue_from(
    checkpoint: Checkpoint, *, weights: Mapping[str, str | None], parts: Collection[str]
) -> HandOff:
    """Every part as a run's own checkpoint has it: what trained is inside, the rest where it
    was."""
    return HandOff(
        predecessor=checkpoint,
        parts={part: _own_origin(checkpoint, part, override=weights.get(part)) for part in parts},
    )


def _own_origin(checkpoint: Checkpoint, part: str, *, override: str | None) -> PartOrigin:
    """As ``_origin``, but the config still names the weights that a trained part began with, and a
    frozen part that is fresh comes from the seed again."""
    record = checkpoint.manifest.parts.get(part)
    if record is not None and record.trained:
        override = None
    if record is not None and not record.trained and (override or record.path) is None:
        return PartOrigin(part=part, kind=OriginKind.fresh, path=None, digest=record.digest)
    return _origin(checkpoint, part, override=override)


def refuse_replaced(checkpoint: Checkpoint, part: str, *, override: str | None) -> None:
    """Raise ContractError where ``override`` names other weights for a part that trained."""
    if override is not None and Path(override).resolve() != checkpoint.directory.resolve():
        raise ContractError(
            f"model.weights.{part}={override} would replace weights that {checkpoint.directory} "
            f"trained. Leave model.weights.{part} out: the checkpoint brings them."
        )


def _is_published(directory: Path) -> bool:
    return (directory / "config.json").is_file() and not (directory / MANIFEST).exists()


def _from_published(
    init_from: Path | None,
    *,
    weights: Mapping[str, str | None],
    parts: Collection[str],
    predecessors: Collection[int],
) -> HandOff:
    if PUBLISHED not in predecessors:
        stages = " or ".join(str(n) for n in sorted(predecessors))
        raise ContractError(
            f"This stage starts from a finished run of stage {stages}; found init_from="
            f"{init_from if init_from is not None else 'nothing'}. Train stage {stages} first and "
            "give init_from=runs/NAME."
        )
    origins = {}
    for part in parts:
        given = weights.get(part)
        path = Path(given) if given is not None else init_from
        kind = OriginKind.fresh if path is None else OriginKind.published
        origins[part] = PartOrigin(part=part, kind=kind, path=path, digest=None)
    return HandOff(predecessor=None, parts=origins)


def _find(init_from: Path) -> Checkpoint:
    """The checkpoint that ``init_from`` means, its bytes verified."""
    if (init_from / MANIFEST).is_file():
        checkpoint = open_checkpoint(init_from)
        if damaged := verify(checkpoint):
            raise CheckpointError(
                f"init_from={init_from} is damaged: bytes of {', '.join(damaged)} are not as "
                "written."
            )
        if (problem := not_finite(checkpoint.manifest)) is not None:
            raise CheckpointError(f"init_from={init_from}: {problem}. Use an earlier checkpoint.")
        return checkpoint
    newest = None
    if init_from.is_dir():
        newest = CheckpointStore(init_from / "checkpoints", config=CheckpointConfig()).newest()
    if newest is None:
        raise ContractError(
            f"init_from={init_from} is neither a run directory with checkpoints, a checkpoint, nor "
            "a published directory with config.json. Give the run directory of the stage before, "
            "such as init_from=runs/NAME."
        )
    if not newest.manifest.finished:
        log.warning(
            "init_from=%s did not finish: its newest checkpoint is of step %d.",
            init_from,
            newest.manifest.step,
        )
    return newest


def check_contract(
    checkpoint: Checkpoint, *, predecessors: Collection[int], expected: Expected
) -> None:
    """Raise ContractError where a stage may not start from this checkpoint."""
    manifest = checkpoint.manifest
    number = manifest.stage.get("number")
    if number not in predecessors:
        allowed = " or ".join(
            "published weights" if n == PUBLISHED else f"stage {n}" for n in sorted(predecessors)
        )
        raise ContractError(
            f"{checkpoint.directory} is of stage {number} ({manifest.stage.get('name')}); this "
            f"stage starts from {allowed}. Give init_from=runs/NAME of such a run."
        )
    check_same(checkpoint, expected=expected)


def check_same(checkpoint: Checkpoint, *, expected: Expected) -> None:
    """Raise ContractError where the weights were trained for other tokens, images or parts."""
    for what, found, wanted in _compared(checkpoint.manifest, expected):
        if found != wanted:
            raise ContractError(
                f"{checkpoint.directory} was trained with another {what}: found {found}, this run "
                f"has {wanted}. Use the {what} that it was trained with, or another checkpoint."
            )


def _compared(manifest: Manifest, expected: Expected) -> tuple[tuple[str, Any, Any], ...]:
    return (
        ("tokenizer", manifest.tokenizer_digest, expected.tokenizer_digest),
        ("image token id", manifest.image_token_id, expected.image_token_id),
        ("image geometry", manifest.geometry, dict(expected.geometry)),
        ("model", manifest.model_digest, expected.model_digest),
    )


def _origin(checkpoint: Checkpoint, part: str, *, override: str | None) -> PartOrigin:
    record = checkpoint.manifest.parts.get(part)
    if record is None:
        raise ContractError(
            f"{checkpoint.directory} has no part {part!r}; it has "
            f"{', '.join(sorted(checkpoint.manifest.parts))}."
        )
    if not record.trained:
        path = override if override is not None else record.path
        if path is None:
            raise ContractError(
                f"{checkpoint.directory} kept {part!r} frozen and freshly initialised, and so has "
                f"no weights of it to hand on. Give model.weights.{part}=PATH in the stage before."
            )
        return PartOrigin(
            part=part, kind=OriginKind.published, path=Path(path), digest=record.digest
        )
    refuse_replaced(checkpoint, part, override=override)
    return PartOrigin(part=part, kind=OriginKind.checkpoint, path=checkpoint.directory, digest=None)
