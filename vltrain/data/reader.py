"""Reads members at known offsets.

In: a Source, a shard's number and a byte range. Out: the bytes. Costs one pread (the page cache
serves shards that fit into memory); a shard is opened once and its size and modification time are
compared with its index then. Nothing open crosses a process border: a pickled reader opens its
own files. Rejected: mmap for reading (a shard cut while it is mapped kills the process instead of
raising).
"""

from __future__ import annotations

import os
from typing import Any

from vltrain.data.index import Member, check_index
from vltrain.data.layout import index_path
from vltrain.data.sources import RecentlyUsed, Source
from vltrain.errors import DataError

OPEN_SHARDS = 64
"""Open files kept by a process and source."""


class ShardReader:
    """Reads members of one source's shards."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._files = RecentlyUsed(self._open, capacity=OPEN_SHARDS, closer=os.close)

    def read(self, shard: int, member: Member) -> bytes:
        """The bytes of a member. Raises DataError when the shard is gone or has changed."""
        data = os.pread(self._files.get(shard), member.size, member.offset)
        if len(data) != member.size:
            raise DataError(
                f"source {self._source.name!r}: {self._source.shards[shard]} ended while it was "
                f"read: bytes {member.offset} to {member.offset + member.size} gave {len(data)} "
                f"bytes; put the shard back as it was"
            )
        return data

    def _open(self, shard: int) -> int:
        path, config = self._source.shards[shard], self._source.config
        index = self._source.indexes[shard]
        facts: dict[str, Any] = {
            "schema": index.schema,
            "bytes": index.bytes,
            "mtime_ns": index.mtime_ns,
        }
        check_index(facts, path, source=self._source.name, path=index_path(path, config.index_dir))
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
