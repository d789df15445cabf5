"""Writes webdataset shards: what data recipes call.

In: ``ShardRecord``s (key and members) of one kind, and a card. Out: ``<prefix>-000000.tar`` ...
and ``card.json`` in one folder, readable by any webdataset tool. The same records always give the
same bytes (mtime 0, members in name order). The folder appears whole or not at all; a folder that
already holds exactly these bytes is left as it is, so an index made beside it stays valid. Costs
one pass over the bytes and, for the comparison, one digest of them. Rejected:
webdataset.ShardWriter (prints, names shards by a pattern that it fills while the last shard is
open, cannot be atomic).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash
from webdataset.writer import TarWriter

from vltrain.batch import RecordKind
from vltrain.data.config import KeyRule
from vltrain.data.layout import CARD_NAME, CARD_SCHEMA, is_image_extension, split_member
from vltrain.data.messages import parse_message
from vltrain.errors import DataError, RecordFault


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """One sample as stored. ``members``: extension -> bytes; ``str`` is written as UTF-8, a dict
    or list as JSON. The functions below make the four kinds."""

    key: str
    members: Mapping[str, bytes | str | dict[str, Any] | list[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardCard:
    """Where shards come from. ``expected_samples``: refuse to finish with another number (None:
    any)."""

    name: str
    description: str
    source: str
    licence: str
    attribution: str = ""
    synthetic: bool = False
    expected_samples: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenShards:
    """What was written. ``changed`` is False where the folder already held the same bytes."""

    directory: Path
    shards: tuple[Path, ...]
    samples: int
    changed: bool


def caption_record(key: str, *, image: bytes, extension: str, text: str) -> ShardRecord:
    """An image (encoded file bytes; extension such as "png") and its caption."""
    return ShardRecord(key=key, members={extension: image, "txt": text})


def text_record(key: str, *, text: str) -> ShardRecord:
    return ShardRecord(key=key, members={"txt": text})


def interleaved_record(
    key: str, *, content: Sequence[str | bytes], extension: str = "png"
) -> ShardRecord:
    """A document: text (``str``) and images (``bytes``) in reading order."""
    images = [part for part in content if isinstance(part, bytes)]
    names = iter([f"{number}.{extension}" for number in range(len(images))])
    document = {
        "texts": [part if isinstance(part, str) else None for part in content],
        "images": [None if isinstance(part, str) else next(names) for part in content],
    }
    members = {f"{number}.{extension}": image for number, image in enumerate(images)}
    return ShardRecord(key=key, members={"json": document, **members})


def conversation_record(
    key: str,
    *,
    messages: Sequence[tuple[str, str | Sequence[Mapping[str, Any]]]],
    images: Sequence[bytes] = (),
    extension: str = "png",
) -> ShardRecord:
    """``messages``: (role, content) in order, role system, user or assistant; a content is text or
    parts (see ``messages``). Every image that they stand for is the next of ``images``. Raises
    DataError where there are more or fewer, and for a content that is neither."""
    rows = [
        {"role": role, "content": said if isinstance(said, str) else [dict(part) for part in said]}
        for role, said in messages
    ]
    try:
        marks = sum(part is None for row in rows for part in parse_message(row)[1])
    except RecordFault as fault:
        raise DataError(f"record {key!r}: {fault}") from fault
    if marks != len(images):
        raise DataError(f"record {key!r}: {marks} <image> marks but {len(images)} images")
    members = {f"{number}.{extension}": image for number, image in enumerate(images)}
    return ShardRecord(key=key, members={"json": {"messages": rows}, **members})


def write_shards(
    records: Iterable[ShardRecord],
    directory: str | os.PathLike[str],
    *,
    kind: RecordKind,
    samples_per_shard: int,
    card: ShardCard,
    prefix: str = "shard",
) -> WrittenShards:
    """Write ``records`` as shards of at most ``samples_per_shard`` samples, and the card last.

    Raises DataError for an unusable key, a key used twice, a record without its kind's members,
    no records at all, a count other than the card's, and a folder that holds anything but earlier
    shards.
    """
    assert samples_per_shard >= 1
    target = Path(directory)
    aside = target.parent / f".{target.name}.writing-{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        shards, samples = _write_tars(
            records, aside, kind=kind, samples_per_shard=samples_per_shard, prefix=prefix
        )
        if samples == 0:
            raise DataError(f"no records for {target}: a source must hold at least one sample")
        if card.expected_samples not in (None, samples):
            raise DataError(
                f"{card.name}: wrote {samples} samples to {target} but its card expects "
                f"{card.expected_samples}; the raw data or the recipe has changed"
            )
        _write_card(aside, card=card, kind=kind, samples=samples, shards=shards)
        changed = _move_in(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    paths = tuple(target / shard["name"] for shard in shards)
    return WrittenShards(directory=target, shards=paths, samples=samples, changed=changed)


@dataclass(slots=True)
class _OpenShard:
    """A shard being filled."""

    path: Path
    stream: Any = None
    tar: Any = None
    samples: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)

    def open(self, path: Path) -> None:
        self.path, self.samples = path, 0
        self.stream = path.open("wb")
        self.tar = TarWriter(self.stream, encoder=False, mtime=0)

    def close(self) -> None:
        if self.tar is None:
            return
        self.tar.close()
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.stream.close()
        self.tar = None
        self.rows.append(
            {"name": self.path.name, "samples": self.samples, **_file_facts(self.path)}
        )


def _write_tars(
    records: Iterable[ShardRecord],
    folder: Path,
    *,
    kind: RecordKind,
    samples_per_shard: int,
    prefix: str,
) -> tuple[list[dict[str, Any]], int]:
    shard, seen = _OpenShard(path=folder), set()
    try:
        for record in records:
            _check_record(record, kind=kind)
            if record.key in seen:
                raise DataError(
                    f"key {record.key!r} is used twice; keys of a source must be unique"
                )
            if len(seen) % samples_per_shard == 0:
                shard.close()
                shard.open(folder / f"{prefix}-{len(seen) // samples_per_shard:06d}.tar")
            seen.add(record.key)
            members = {name: _to_bytes(value) for name, value in record.members.items()}
            shard.tar.write({"__key__": record.key, **members})
            shard.samples += 1
    finally:
        shard.close()
    return shard.rows, len(seen)


def _check_record(record: ShardRecord, *, kind: RecordKind) -> None:
    if split_member(f"{record.key}.txt", keys=KeyRule.first_dot) != (record.key, "txt"):
        raise DataError(
            f"key {record.key!r} cannot be used: webdataset ends a key at the first dot of its "
            f"base name, and a key may not be empty"
        )
    names = set(record.members)
    images = {name for name in names if is_image_extension(name)}
    wanted = {
        RecordKind.caption: "txt" in names and len(images) == 1,
        RecordKind.text: "txt" in names and not images,
        RecordKind.interleaved: "json" in names,
        RecordKind.conversation: "json" in names,
    }[kind]
    if not wanted or any(name != name.lower() or name.startswith("_") for name in names):
        raise DataError(
            f"record {record.key!r} of kind {kind.value} has members {sorted(names)}; expected "
            f"{_EXPECTED_MEMBERS[kind]}, in lower case"
        )


_EXPECTED_MEMBERS = {
    RecordKind.caption: "one image (such as png or jpg) and txt",
    RecordKind.text: "txt",
    RecordKind.interleaved: "json, and 0.png, 1.png, ... for its images",
    RecordKind.conversation: "json, and 0.png, 1.png, ... for its images",
}


def _to_bytes(value: bytes | str | dict[str, Any] | list[Any]) -> bytes:
    if isinstance(value, bytes):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8")


def _file_facts(path: Path) -> dict[str, Any]:
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "xxh3_128": digest.hexdigest()}


def _write_card(
    folder: Path, *, card: ShardCard, kind: RecordKind, samples: int, shards: list[dict[str, Any]]
) -> None:
    content = {
        "schema": CARD_SCHEMA,
        **asdict(card),
        "kind": kind.value,
        "samples": samples,
        "shards": shards,
    }
    text = json.dumps(content, ensure_ascii=False, indent=1)
    (folder / CARD_NAME).write_text(text + "\n", encoding="utf-8")


def _move_in(aside: Path, target: Path) -> bool:
    """Put the finished folder in place; True unless the target already holds the same bytes."""
    if not target.exists():
        os.replace(aside, target)
        return True
    card = target / CARD_NAME
    if not card.is_file() and any(target.iterdir()):
        raise DataError(
            f"{target} exists and holds files but no {CARD_NAME}, so it was not written by a "
            f"recipe; choose another folder or move it away"
        )
    if card.is_file() and card.read_bytes() == (aside / CARD_NAME).read_bytes():
        shards = json.loads(card.read_text(encoding="utf-8"))["shards"]
        wanted = [{"bytes": s["bytes"], "xxh3_128": s["xxh3_128"]} for s in shards]
        present = [target / shard["name"] for shard in shards]
        if all(path.is_file() for path in present) and wanted == [_file_facts(p) for p in present]:
            return False
    old = target.parent / f".{target.name}.old-{os.getpid()}"
    os.replace(target, old)
    os.replace(aside, target)
    shutil.rmtree(old)
    return True
