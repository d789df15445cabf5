"""Reads members at known offsets.

In: a Source, a shard's number and a byte range. Out: the bytes. Costs one pread (the page cache
serves shards that fit into memory); a shard is opened once and its size and modification time are
compared with its index then. Nothing open crosses a process border: a pickled reader opens its
own files. Remote shards come through the node's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice

import numpy as np

from vltrain.data.index import Extents, Member, check_index, check_stamp, spans
from vltrain.data.layout import RemoteShard, index_path
from vltrain.data.shardfile import LocalFile, OpenShard, RemoteFile, stamp_of
from vltrain.data.sources import RecentlyUsed, Source
from vltrain.errors import DataError

OPEN_SHARDS = 64
"""Open files kept by a process and source."""


class ShardReader:
    """Reads members of one source's shards."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._files = RecentlyUsed(self._open, capacity=OPEN_SHARDS, closer=_close)

    def read(self, shard: int, member: Member) -> bytes:
        """The bytes of a member. Raises DataError when the shard is gone or has changed."""
        return self._stretch(shard, member.offset, member.size)

    def read_records(
        self, shards: np.ndarray, rows: np.ndarray
    ) -> Iterator[tuple[str, dict[str, memoryview]]]:
        """Key and members by extension of samples, in the order asked for; one read each, members
        uncopied. shards, rows: int64, of equal length; a thousand at a time are cheapest. Raises
        DataError as ``read`` does."""
        order = np.argsort(shards, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(shards[order])) + 1)
        found = [self._source.index(int(shards[g[0]])).extents(rows[g]) for g in groups]
        by_shard = Extents(*map(np.concatenate, zip(*found, strict=True)))
        asked = np.argsort(order)
        count = by_shard.count[asked]
        member = spans((np.cumsum(by_shard.count) - by_shard.count)[asked], count)
        columns = (by_shard.extension, by_shard.first, by_shard.end)
        members = zip(*(column[member].tolist() for column in columns), strict=True)
        samples = (shards, by_shard.key[asked], by_shard.offset[asked], by_shard.size[asked], count)
        stretch = self._stretch
        for shard, key, offset, size, number in zip(*(c.tolist() for c in samples), strict=True):
            whole = memoryview(stretch(shard, offset, size))
            yield key, {name: whole[first:end] for name, first, end in islice(members, number)}

    def _stretch(self, shard: int, offset: int, size: int) -> bytes:
        data = self._files.get(shard).read(offset, size)
        if len(data) != size:
            raise DataError(
                f"source {self._source.name!r}: {self._source.shards[shard]} ended while it was "
                f"read: bytes {offset} to {offset + size} gave {len(data)} bytes; put the shard "
                "back as it was"
            )
        return data

    def _open(self, shard: int) -> OpenShard:
        path, config = self._source.shards[shard], self._source.config
        name, facts = self._source.name, asdict(self._source.indexes[shard])
        check_index(facts, path, source=name, path=index_path(path, config.index_dir))
        if not isinstance(path, RemoteShard):
            return LocalFile(path)
        remote = self._source.remote
        assert remote is not None
        stamp = stamp_of(path, remote=remote)
        check_stamp(facts, path, source=name, stamp=stamp)
        return RemoteFile(path, remote=remote, stamp=stamp)


def _close(opened: OpenShard) -> None:
    opened.close()
