"""The manifest: everything about a checkpoint except its tensors, in one JSON file written last.

In and out: frozen records <-> JSON, schema 1. A directory is a checkpoint if and only if its
manifest is there, parses, and the files that it lists have the listed sizes (and, where asked,
digests). The rows that say where each tensor run lies are in fragments.json beside it, because they
can be thousands.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from vltrain.checkpoint.health import Health
from vltrain.errors import CheckpointError

SCHEMA = 1
MANIFEST = "manifest.json"
FRAGMENTS = "fragments.json"
_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """Where a part's weights are.

    trained: they are inside this checkpoint, as fp32 fragments, and ``path`` and ``digest`` name
    what the run began with (None: fresh). Not trained: they are at ``path``, and ``digest`` is
    theirs. digest: xxh3-128 hex over the part's tensor digests. tensors: file in this checkpoint
    that holds the digest of each tensor at ``path``, or None.
    """

    trained: bool
    path: str | None
    digest: str | None
    tensors: str | None = None


@dataclass(frozen=True, kw_only=True)
class ParamRecord:
    """A parameter that has fragments. shape is whole, dtype that of the fragments."""

    shape: tuple[int, ...]
    dtype: str
    part: str


@dataclass(frozen=True, kw_only=True)
class FragmentRecord:
    """``count`` elements from ``offset`` of flattened ``param``, under ``key`` in ``file``."""

    file: str
    key: str
    param: str
    kind: str
    offset: int
    count: int


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    path: str
    bytes: int
    xxh3_128: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What the next process needs to go on, and what the next stage needs to trust it.

    step: updates made in this stage. finished: this is the stage's end. stage: number, name,
    policy. run: name, dir, wandb_id. geometry: what decides the tokens of an image. cursor: the
    plan's position (None: the start). counters: sums so far. world: size, zero_stage. metrics:
    loss (training, since the checkpoint before), for retention. recipe, data: numbers of the
    stage's recipe, and its sources with their licences; lineage: the same of the stages before.
    rng: unused, the states are in a file of each rank's own. health: of the run when it was
    written (None: by a version that did not record it). fragments and files are filled in by the
    store. digest: of the manifest's own text, to find damage inside it.
    """

    created: str
    step: int
    finished: bool
    stage: dict[str, Any]
    run: dict[str, Any]
    config_digest: str
    model_digest: str
    tokenizer_digest: str
    image_token_id: int
    geometry: dict[str, Any]
    recipe_digest: str
    seed: int
    cursor: dict[str, Any] | None
    chain_head: str
    counters: dict[str, Any]
    parts: dict[str, PartRecord]
    params: dict[str, ParamRecord]
    world: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, dict[str, Any]] = field(default_factory=dict)
    lineage: list[dict[str, Any]] = field(default_factory=list)
    rng: dict[str, Any] = field(default_factory=dict)
    health: Health | None = None
    versions: dict[str, str] = field(default_factory=dict)
    fragments: tuple[FragmentRecord, ...] = ()
    files: tuple[FileRecord, ...] = ()
    schema: int = SCHEMA
    digest: str = ""


def versions() -> dict[str, str]:
    """Versions of what computed a checkpoint."""
    names = ("vltrain", "torch", "deepspeed", "transformers", "safetensors")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}


def digest_file(path: Path) -> str:
    """xxh3-128 hex of a file, read in chunks."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def to_json(manifest: Manifest) -> str:
    """The manifest without its fragment rows, with its own digest."""
    values = dataclasses.asdict(manifest)
    del values["fragments"], values["digest"]
    # Through JSON once, so that the digest is of what a reader sees.
    values = json.loads(json.dumps(values))
    return json.dumps({**values, "digest": _own_digest(values)}, indent=1)


def _own_digest(values: Mapping[str, Any]) -> str:
    """xxh3-128 hex over the values as JSON with sorted keys."""
    return xxhash.xxh3_128_hexdigest(json.dumps(values, sort_keys=True).encode())


def fragments_to_json(manifest: Manifest) -> str:
    """The fragment rows, as columns would be read: one short list each."""
    return json.dumps([list(dataclasses.astuple(row)) for row in manifest.fragments])


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint directory, its files' presence and sizes checked.

    Raises CheckpointError where it is absent, not of this schema, or a file is absent or of
    another size; digests are checked by ``damaged_files``.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{directory} has no {MANIFEST}: it is not a checkpoint, or was never completed."
        )
    manifest = _parse(path)
    for record in manifest.files:
        file = directory / record.path
        if not file.is_file():
            raise CheckpointError(f"{directory} is damaged: {record.path} is missing.")
        size = file.stat().st_size
        if size != record.bytes:
            raise CheckpointError(
                f"{directory} is damaged: {record.path} has {size} bytes, its manifest says "
                f"{record.bytes}."
            )
    fragments = _parse_fragments(directory)
    unlisted = {row.file for row in fragments} - {record.path for record in manifest.files}
    if unlisted:
        raise CheckpointError(
            f"{directory / FRAGMENTS} names files that {MANIFEST} does not list: "
            f"{', '.join(sorted(map(repr, unlisted)))}."
        )
    return dataclasses.replace(manifest, fragments=fragments)


def damaged_files(
    directory: Path, manifest: Manifest, *, share: int = 0, shares: int = 1
) -> list[str]:
    """Files whose bytes differ from the manifest's digests, among every ``shares``-th file."""
    return [
        record.path
        for record in manifest.files[share::shares]
        if digest_file(directory / record.path) != record.xxh3_128
    ]


def _parse(path: Path) -> Manifest:
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: it is not JSON ({error}).") from error
    found = values.get("schema") if isinstance(values, dict) else None
    if found != SCHEMA:
        raise CheckpointError(
            f"{path} has schema {found!r}; this version of vltrain reads schema {SCHEMA}."
        )
    stored = values.pop("digest", None)  # manifests of before it was written have none
    if stored is not None and stored != _own_digest(values):
        raise CheckpointError(f"{path} is damaged: its own digest does not fit its content.")
    values["parts"] = _records(values, "parts", PartRecord, path=path)
    values["params"] = _records(values, "params", ParamRecord, path=path)
    values["params"] = {
        name: dataclasses.replace(record, shape=tuple(record.shape))
        for name, record in values["params"].items()
    }
    try:
        values["files"] = tuple(FileRecord(**row) for row in values.get("files", ()))
        values["health"] = _health(values.get("health"))
        manifest = Manifest(**values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from error
    named = [f.path for f in manifest.files]
    named += [p.tensors for p in manifest.parts.values() if p.tensors is not None]
    _refuse_outside(named, path=path)
    return manifest


def _refuse_outside(names: list[str], *, path: Path) -> None:
    """A manifest names files beside itself and nothing else: no folder, no way up."""
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or "\0" in name or "/" in name:
            raise CheckpointError(
                f"{path} names the file {name!r}: expected plain names of files beside it. Do not "
                "use a checkpoint of unknown origin."
            )


def _records(values: Mapping[str, Any], key: str, kind: Any, *, path: Path) -> dict[str, Any]:
    try:
        return {name: kind(**row) for name, row in values[key].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged in {key!r}: {error!r}.") from error


def _health(stored: dict[str, Any] | None) -> Health | None:
    if stored is None:
        return None
    health = Health(**stored)
    return dataclasses.replace(health, left=tuple((back, at) for back, at in health.left))


def _parse_fragments(directory: Path) -> tuple[FragmentRecord, ...]:
    names = [f.name for f in dataclasses.fields(FragmentRecord)]
    path = directory / FRAGMENTS
    try:
        rows = json.loads(path.read_text())
        return tuple(FragmentRecord(**dict(zip(names, row, strict=True))) for row in rows)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from error
