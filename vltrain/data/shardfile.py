"""A shard as a file, wherever it lies: its size and version, all of it as a map, parts of it.

In: a shard, local or remote. Out: what an index is checked by, what it is built from, and what a
reader reads with. Costs a stat or a request; mapping a remote shard copies it to this node first,
into a file without a name: the kernel removes it with its last user, however that ends.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from vltrain.data.layout import RemoteShard, Shard
from vltrain.data.remote import RemoteStore
from vltrain.errors import DataError


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes with a shard. mtime_ns: of a remote shard, a digest of its version (ETag)."""

    bytes: int
    mtime_ns: int


def stamp_of(shard: Shard, *, remote: RemoteStore | None) -> Stamp:
    """Raises DataError (remote) or OSError (local) where the shard is gone."""
    if isinstance(shard, RemoteShard):
        assert remote is not None
        return Stamp(*remote.stat(shard))
    stat = shard.stat()
    return Stamp(stat.st_size, stat.st_mtime_ns)


@contextmanager
def mapped(shard: Shard, *, remote: RemoteStore | None) -> Iterator[mmap.mmap]:
    """All bytes of a shard. Raises DataError for an empty one."""
    if not isinstance(shard, RemoteShard):
        with shard.open("rb") as stream, _map_of(stream, shard) as data:
            yield data
        return
    assert remote is not None
    with tempfile.TemporaryFile(dir=remote.scratch()) as copy:
        for part in remote.chunks(shard, file=remote.stat(shard)):
            copy.write(part)
        copy.flush()
        with _map_of(copy, shard) as data:
            yield data


@contextmanager
def viewed(shard: Shard, *, remote: RemoteStore | None) -> Iterator[Bytes]:
    """All bytes of a shard; of a remote one, only those that are looked at are fetched. Raises
    DataError for an empty one, and as the store does."""
    if not isinstance(shard, RemoteShard):
        with shard.open("rb") as stream, _map_of(stream, shard) as data:
            yield data
        return
    assert remote is not None
    yield _RemoteBytes(shard, remote=remote)


@contextmanager
def _map_of(stream: BinaryIO, shard: Shard) -> Iterator[mmap.mmap]:
    _check_not_empty(shard, os.fstat(stream.fileno()).st_size)
    with mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as data:
        yield data


def _check_not_empty(shard: Shard, size: int) -> None:
    if size == 0:
        raise DataError(f"{shard} is empty (0 bytes); copy or write this shard again")


class Bytes(Protocol):
    """bytes, mmap, memoryview or a remote shard: sliced, never copied whole."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: slice, /) -> bytes: ...


class OpenShard(Protocol):
    """Reads parts of one shard."""

    def read(self, offset: int, size: int) -> bytes: ...

    def close(self) -> None: ...


class LocalFile:
    """Reads with pread. Rejected: mmap (a shard cut while it is mapped kills the process instead
    of raising)."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)

    def close(self) -> None:
        os.close(self._descriptor)


class RemoteFile:
    """Reads through the node's cache."""

    def __init__(self, shard: RemoteShard, *, remote: RemoteStore, stamp: Stamp) -> None:
        self._shard, self._remote, self._stamp = shard, remote, stamp

    def read(self, offset: int, size: int) -> bytes:
        stamp = self._stamp
        return self._remote.read(self._shard, offset, size, file=(stamp.bytes, stamp.mtime_ns))

    def close(self) -> None:
        return


class _RemoteBytes:
    """A remote shard, sliced like bytes."""

    def __init__(self, shard: RemoteShard, *, remote: RemoteStore) -> None:
        stamp = stamp_of(shard, remote=remote)
        self._size, self._file = stamp.bytes, RemoteFile(shard, remote=remote, stamp=stamp)
        _check_not_empty(shard, stamp.bytes)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice, /) -> bytes:
        start, end, _ = part.indices(self._size)
        return self._file.read(start, end - start) if start < end else b""
