"""The index of a shard: where every member of every sample lies, image sizes, digests.

In: a plain webdataset tar. Out: one column file per shard, one row per sample. Building costs one
pass over the shard (headers, image headers, xxh3 of everything); opening costs one stat and one
mmap. Samples are grouped as webdataset groups them: neighbouring members of one key. Nothing here
knows what a record means; ``records`` does.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from vltrain.data.columns import ColumnFile, read_columns, read_facts, write_columns
from vltrain.data.config import KeyRule
from vltrain.data.layout import (
    INDEX_SCHEMA,
    PREPARE_COMMAND,
    RemoteShard,
    Shard,
    index_path,
    is_image_extension,
    is_meta_member,
    split_member,
)
from vltrain.data.shardfile import Bytes, Stamp, stamp_of
from vltrain.data.tarscan import TarMember, scan_tar
from vltrain.errors import DataError, RecordFault
from vltrain.processing.images import probe_size

_MEMBER = pa.struct(
    [
        ("extension", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("reason", pa.string()),  # why an image member cannot be used; empty when it can
        ("detail", pa.string()),
        ("digest", pa.uint64()),  # xxh3_64 of the member's bytes
    ]
)


class Member(NamedTuple):
    """A member of a sample (a tuple: a frozen dataclass takes three times as long to make).
    ``offset`` and ``size`` in bytes of the shard; width and height in pixels, 0 where it is no
    image or none that can be read (then ``reason`` and ``detail`` say why)."""

    extension: str
    offset: int
    size: int
    width: int = 0
    height: int = 0
    reason: str = ""
    detail: str = ""


class Extents(NamedTuple):
    """Where samples lie, as arrays over the samples: key (str), offset and size (int64, bytes of
    the shard from the first member to the end of the last, headers between them included) and count
    of members; and over their members, sample by sample in shard order: extension (str), first byte
    and end in that stretch (int64)."""

    key: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    count: np.ndarray
    extension: np.ndarray
    first: np.ndarray
    end: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexFacts:
    """What the catalog keeps of a shard. ``ignored``: members without key or extension, which
    webdataset skips too. ``unreadable``: image members whose header cannot be read. ``keys``: the
    rule (KeyRule) that names were split by; indexes without it are of the first dot."""

    schema: int
    bytes: int
    mtime_ns: int
    xxh3_128: str
    samples: int
    members: int
    ignored: int
    unreadable: int
    keys: str = KeyRule.first_dot.value


class ShardIndex:
    """An opened index. Rows are samples in shard order."""

    def __init__(self, columns: ColumnFile) -> None:
        self.facts = IndexFacts(**columns.facts)
        self._keys = columns.array("key")
        lists = columns.array("members")
        fields = lists.values
        self._bounds: np.ndarray = lists.offsets.to_numpy(zero_copy_only=True)
        # Few names, many members: a list of names and each member's place in it, because making a
        # string of an Arrow value costs more than reading the member.
        coded = [fields.field(name).dictionary_encode() for name in ("extension", "reason")]
        self._names = [(c.dictionary.to_pylist(), c.indices.to_numpy()) for c in coded]
        self._details = fields.field("detail")
        numbers = ("offset", "size", "width", "height")
        self._numbers = [fields.field(name).to_numpy(zero_copy_only=True) for name in numbers]
        self._digests: np.ndarray = fields.field("digest").to_numpy(zero_copy_only=True)
        self.key_digests: np.ndarray = columns.numbers("key_digest")
        self.content_digests: np.ndarray = columns.numbers("content_digest")

    def __len__(self) -> int:
        return self.facts.samples

    def key(self, row: int) -> str:
        return self._keys[row].as_py()

    def image_digests(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Digests (uint64) of the images of some samples, as stored, and each one's row (int64)."""
        wanted = np.zeros(len(self), dtype=bool)
        wanted[rows] = True
        row = np.repeat(np.arange(len(self)), np.diff(self._bounds))
        width = self._numbers[2]
        taken = wanted[row] & (width > 0)
        return self._digests[taken], row[taken]

    def image_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Widths and heights (int32, pixels) of all image members whose header can be read."""
        width, height = self._numbers[2:]
        readable = width > 0
        return width[readable], height[readable]

    def extents(self, rows: np.ndarray) -> Extents:
        """Where the samples of ``rows`` (int64) lie. All at once: one by one, finding a sample
        takes as long as reading it."""
        first, end = self._bounds[rows], self._bounds[rows + 1]
        offset, size = self._numbers[:2]
        (names, place), _ = self._names
        begin, count = offset[first], end - first
        member = spans(first, count)
        starts = offset[member] - np.repeat(begin, count)
        return Extents(
            key=self._keys.take(pa.array(rows)).to_numpy(zero_copy_only=False),
            offset=begin,
            size=offset[end - 1] + size[end - 1] - begin,
            count=count,
            extension=np.array(names, dtype=object)[place[member]],
            first=starts,
            end=starts + size[member],
        )

    def members(self, row: int) -> tuple[Member, ...]:
        """The members of a sample, in shard order."""
        first, end = int(self._bounds[row]), int(self._bounds[row + 1])
        (extensions, extension), (reasons, reason) = self._names
        offset, size, width, height = (column[first:end].tolist() for column in self._numbers)
        found = zip(
            extension[first:end].tolist(),
            offset,
            size,
            width,
            height,
            reason[first:end].tolist(),
            range(first, end),
            strict=True,
        )
        return tuple(
            Member(
                extensions[e],
                o,
                n,
                w,
                h,
                reasons[r],
                self._details[i].as_py() if reasons[r] else "",
            )
            for e, o, n, w, h, r, i in found
        )


def spans(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """first, first + 1, ... so many of each, joined."""
    before = np.cumsum(count) - count
    return np.repeat(first - before, count) + np.arange(count.sum())


def is_fresh(facts: dict[str, Any] | None, stamp: Stamp) -> bool:
    """Whether index facts still describe the shard (schema, size and modification time)."""
    if facts is None or facts.get("schema") != INDEX_SCHEMA:
        return False
    return Stamp(facts["bytes"], facts["mtime_ns"]) == stamp


def index_keys(facts: dict[str, Any] | None) -> KeyRule:
    """The rule that an index's names were split by."""
    return KeyRule((facts or {}).get("keys", KeyRule.first_dot.value))


def open_index(shard: Shard, *, index_dir: str | None, source: str) -> ShardIndex:
    """Open the index of a shard. Raises DataError when it is absent, of another schema or
    stale."""
    path = index_path(shard, index_dir)
    facts = read_facts(path)
    check_index(facts, shard, source=source, path=path)
    return ShardIndex(read_columns(path))


def check_index(
    facts: dict[str, Any] | None, shard: Shard, *, source: str, path: Path
) -> dict[str, Any]:
    """The facts found at ``path``. Raises DataError unless they describe the shard as it is
    now. (A remote shard is asked when it is opened for reading: ``check_stamp``.)"""
    if facts is None:
        raise DataError(
            f"source {source!r}: {shard} has no index (looked for it in {path}); run: "
            f"{PREPARE_COMMAND}"
        )
    if facts.get("schema") != INDEX_SCHEMA:
        raise DataError(
            f"source {source!r}: the index {path} has schema {facts.get('schema')}, this version "
            f"reads {INDEX_SCHEMA}; run: {PREPARE_COMMAND}"
        )
    if isinstance(shard, RemoteShard):
        return facts
    if not shard.is_file():
        raise DataError(
            f"source {source!r}: shard {shard} is gone; put it back or correct the source's path"
        )
    check_stamp(facts, shard, source=source, stamp=stamp_of(shard, remote=None))
    return facts


def check_stamp(facts: dict[str, Any], shard: Shard, *, source: str, stamp: Stamp) -> None:
    """Raise DataError where the shard is not the one that was indexed."""
    if not is_fresh(facts, stamp):
        raise DataError(
            f"source {source!r}: the index of {shard} is stale: the shard has {stamp.bytes} "
            f"bytes and mtime {stamp.mtime_ns}, the index was made for {facts['bytes']} bytes "
            f"and mtime {facts['mtime_ns']}; run: {PREPARE_COMMAND}"
        )


def build_index(
    shard: Shard, data: mmap.mmap, *, stamp: Stamp, index_dir: str | None, keys: KeyRule
) -> IndexFacts:
    """Index a shard, mapped as ``data``, and write the index. Raises DataError for anything that is
    not a whole, plain tar with at least one sample."""
    columns, ignored, unreadable = _index_columns(data, shard, keys)
    digest = xxhash.xxh3_128_hexdigest(data)
    samples = len(columns["key"])
    if samples == 0:
        raise DataError(
            f"{shard} is an empty tar: it holds no samples ({ignored} members without a key and "
            f"an extension); remove it or write it again"
        )
    facts = IndexFacts(
        schema=INDEX_SCHEMA,
        bytes=stamp.bytes,
        mtime_ns=stamp.mtime_ns,
        xxh3_128=digest,
        samples=samples,
        members=sum(len(members) for members in columns["members"]),
        ignored=ignored,
        unreadable=unreadable,
        keys=keys.value,
    )
    arrays = {
        "key": pa.array(columns["key"], pa.string()),
        "key_digest": pa.array(columns["key_digest"], pa.uint64()),
        "content_digest": pa.array(columns["content_digest"], pa.uint64()),
        "members": _member_array(columns["members"], digests=columns["digests"]),
    }
    write_columns(index_path(shard, index_dir), arrays, facts=asdict(facts))
    return facts


def _index_columns(
    data: Bytes, shard: Shard, keys: KeyRule
) -> tuple[dict[str, list[Any]], int, int]:
    columns: dict[str, list[Any]] = {
        name: [] for name in ("key", "key_digest", "content_digest", "members", "digests")
    }
    named = NamedMembers(scan_tar(data, shard=shard), keys=keys)
    unreadable = 0
    for key, group in groupby(named, key=lambda item: item[0]):
        members, sample = [], xxhash.xxh3_64()
        for _, extension, member in group:
            content = data[member.offset : member.offset + member.size]
            digest = xxhash.xxh3_64_intdigest(content)
            sample.update(f"{extension}:{member.size}:{digest:016x}".encode())
            columns["digests"].append(digest)
            members.append(member_row(extension, member, content))
            unreadable += bool(members[-1].reason)
        columns["key"].append(key)
        columns["key_digest"].append(xxhash.xxh3_64_intdigest(key.encode()))
        columns["content_digest"].append(sample.intdigest())
        columns["members"].append(members)
    return columns, named.ignored, unreadable


class NamedMembers:
    """Members with their key and extension; counts those that have none."""

    def __init__(self, members: Iterable[TarMember], *, keys: KeyRule) -> None:
        self._members, self._keys = members, keys
        self.ignored = 0

    def __iter__(self) -> Iterator[tuple[str, str, TarMember]]:
        for member in self._members:
            parts = split_member(member.name, keys=self._keys)
            if parts is None or is_meta_member(member.name):
                self.ignored += 1
            else:
                yield *parts, member


def member_row(extension: str, member: TarMember, content: bytes) -> Member:
    """A member as the index holds it; ``content``: its bytes."""
    width, height, reason, detail = 0, 0, "", ""
    if is_image_extension(extension):
        try:
            width, height = probe_size(content)
        except RecordFault as fault:
            reason, detail = fault.reason, fault.detail
    return Member(extension, member.offset, member.size, width, height, reason, detail)


def _member_array(rows: list[list[Member]], *, digests: list[int]) -> pa.Array:
    """list<struct>, built by column: by row it would cost a dict for every member."""
    bounds = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    columns = [*zip(*(member for row in rows for member in row), strict=True), digests]
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, _MEMBER, strict=True)]
    members = pa.StructArray.from_arrays(arrays, fields=list(_MEMBER))
    return pa.ListArray.from_arrays(pa.array(bounds), members)
