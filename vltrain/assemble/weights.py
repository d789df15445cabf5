"""Weights into the built model, from wherever each part's come, with a digest of what it began
with.

In: a built model and the hand-off. Out: every part filled, and a ``PartRecord`` of each for the
manifest. A part comes from a published directory, from the predecessor's checkpoint, or from the
seed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import torch

from vltrain import distributed
from vltrain.checkpoint.handoff import HandOff, OriginKind
from vltrain.checkpoint.manifest import PartRecord
from vltrain.checkpoint.store import Checkpoint
from vltrain.engine.fragments import FragmentKind, Read
from vltrain.errors import ConfigError
from vltrain.models.build import BuiltModel
from vltrain.models.config import ModelConfig
from vltrain.models.published_vit import open_published
from vltrain.models.trainable import part_of
from vltrain.models.weights import (
    load_weights,
    neck_source,
    part_digest,
    published_digests,
    tensor_digests,
)

log = logging.getLogger(__name__)


def trained_records(checkpoint: Checkpoint) -> dict[str, PartRecord]:
    """Records of the parts that lie in a run's own checkpoint: what they began with is the first
    start's to say, not that of whoever reads them again."""
    return {part: record for part, record in checkpoint.manifest.parts.items() if record.trained}


def load_parts(
    built: BuiltModel,
    origins: HandOff,
    *,
    trainable: Collection[str],
    recorded: Mapping[str, PartRecord],
) -> tuple[dict[str, PartRecord], dict[str, dict[str, str]]]:
    """Fill ``built``; return each part's record and the tensor digests of the frozen ones.

    recorded: records that stand already (``trained_records``); those parts are not digested.

    Raises WeightsError where a directory does not fit, ContractError where weights are not those
    that a predecessor recorded.
    """
    published = {
        part: origin.path
        for part, origin in origins.parts.items()
        if origin.kind is OriginKind.published and origin.path is not None
    }
    stored = [p for p, origin in origins.parts.items() if origin.kind is OriginKind.checkpoint]
    load_weights(built, directories=published, filled_later=stored)
    for part in stored:
        for name, tensor in origins.part_state(part):
            built.fill(name, tensor)
    records: dict[str, PartRecord] = {}
    digests: dict[str, dict[str, str]] = {}
    for part, origin in origins.parts.items():
        if part in recorded:
            records[part] = recorded[part]
            log.info("%s: as trained, from %s", part, origin.path)
            continue
        found = _digests(built, part, origins)
        origins.check_digest(part, found=part_digest(found))
        if part not in trainable:
            digests[part] = found
        records[part] = PartRecord(
            trained=part in trainable,
            path=str(origin.path.absolute()) if origin.path is not None else None,
            digest=part_digest(found),
        )
        log.info("%s: %s", part, _said(origin.kind, records[part]))
    built.keep_rest(origins.parts.keys() - from_files(origins))
    return records, digests


def from_files(origins: HandOff) -> set[str]:
    """Parts that need no values before they are loaded."""
    return {p for p, origin in origins.parts.items() if origin.kind is not OriginKind.fresh}


def refuse_unasked_random(
    config: ModelConfig, origins: HandOff, *, may_be_new: Collection[str]
) -> None:
    """Raise ConfigError where a part that is not new by design would start at random values: nearly
    always a forgotten path, whether the part trains or not. Before anything is built."""
    if config.weights.allow_random:
        return
    random = [
        part
        for part, origin in origins.parts.items()
        if origin.kind is OriginKind.fresh and part not in may_be_new
    ]
    if random:
        settings = " ".join(f"model.weights.{part}=DIRECTORY" for part in random)
        raise ConfigError(
            f"no weights are given for {', '.join(random)}. Start from a finished run of the stage "
            f"before with init_from=runs/NAME, or from published weights with {settings}; "
            "model.weights.allow_random=true if random values are meant"
        )


def masters_of(origins: HandOff, *, config: ModelConfig, dtype: torch.dtype) -> Read | None:
    """Reader of the fp32 masters of what a stage starts with, None where the module's own copy, in
    ``dtype``, is as good: what a checkpoint holds in fp32, or a published file in fp32 or fp16,
    must not pass through bf16. A tensor that the predecessor kept frozen has no master; its value
    is in the module. The necks of a fresh adaptor have SAM's (see ``neck_source``)."""
    inside = {p for p, origin in origins.parts.items() if origin.kind is OriginKind.checkpoint}
    reader = origins.predecessor.reader() if origins.predecessor is not None and inside else None
    published = {
        part: open_published(origin.path, config=config, part=part)
        for part, origin in origins.parts.items()
        if origin.kind is OriginKind.published and origin.path is not None
        if dtype != torch.float32
    }
    if reader is None and not published:
        return None
    fresh_adaptor = "adaptor" in origins.parts and (
        origins.parts["adaptor"].kind is OriginKind.fresh
    )

    def read(name: str, kind: FragmentKind, offset: int, count: int) -> torch.Tensor | None:
        source = neck_source(name, config=config) if fresh_adaptor else None
        part, stored = ("sam", source) if source is not None else (part_of(name), name)
        if part in inside and reader is not None and reader.holds(name, kind):
            return reader(name, kind, offset, count)
        directory = published.get(part)
        if directory is not None and stored in directory.shapes and kind is FragmentKind.master:
            tensor = directory.tensor(stored)
            if tensor.dtype != dtype:
                return tensor.flatten()[offset : offset + count].float()
        return None

    return read


def _digests(built: BuiltModel, part: str, origins: HandOff) -> dict[str, str]:
    """Tensor digests of what the part began with: of the files where it is published (whatever type
    the run casts them to), of the tensors themselves otherwise. The first rank reads."""
    origin = origins.parts[part]
    found: Mapping[str, str] | None = None
    if distributed.is_first():
        if origin.kind is OriginKind.published and origin.path is not None:
            found = published_digests(built.config, part=part, directory=origin.path)
        elif origin.kind is OriginKind.checkpoint:
            found = tensor_digests(origins.part_state(part))
        else:
            found = tensor_digests(built.part_state(part).items())
    return dict(distributed.broadcast_object(found))


def _said(kind: OriginKind, record: PartRecord) -> str:
    what = "trains" if record.trained else "frozen"
    where = "fresh, from the seed" if kind is OriginKind.fresh else f"from {record.path}"
    return f"{what}, {where} (digest {record.digest})"
