"""Parts of remote files on this node's disk: bounded, shared by all processes, fetched once.

In: the name of a remote file, a chunk's number, and a way to fetch it. Out: a stretch of its bytes.
A chunk is a file, written aside and renamed; before one comes in, those that were not read for the
longest time go until it fits, so the bound holds at every moment. Two processes that want the same
chunk wait for one download (a lock that the kernel drops with its owner). Costs a pread and a touch
for what is there; a listing of the folder for what is not (8 MiB each: 10 ms at 64 GiB).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from vltrain.errors import DataError

_LOCKS = 64
"""Lock files: chunks share them by their name's digest."""


class ChunkCache:
    """Chunks in a folder of at most ``bound_bytes``."""

    def __init__(self, folder: Path, *, bound_bytes: int) -> None:
        self.folder, self._bound = folder, bound_bytes

    def holds(self, name: str, chunk: int) -> bool:
        return self._path(name, chunk).exists()

    def read(
        self, name: str, chunk: int, *, start: int, end: int, fetch: Callable[[], bytes]
    ) -> bytes:
        """Bytes start to end of a chunk. Raises what ``fetch`` raises, and DataError where the
        folder cannot be written."""
        path = self._path(name, chunk)
        present = _stretch(path, start, end)
        if present is not None:
            return present
        with self._locked(f"fetch-{_digest(f'{name}/{chunk}') % _LOCKS}"):
            present = _stretch(path, start, end)
            if present is not None:
                return present
            whole = fetch()
            self._put(path, whole)
        return whole[start:end]

    def _path(self, name: str, chunk: int) -> Path:
        return self.folder / name / f"{chunk}.chunk"

    def _put(self, path: Path, whole: bytes) -> None:
        with self._locked("room"):
            self._make_room(len(whole))
            aside = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                aside.write_bytes(whole)
                os.replace(aside, path)
            except OSError as error:
                aside.unlink(missing_ok=True)
                raise self._refused(error) from error

    def _make_room(self, size: int) -> None:
        """Remove the chunks that were not read for the longest time; called by one at a time."""
        present = []
        for path in self.folder.glob("*/*.chunk"):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            present.append((stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in present)
        for _, old, path in sorted(present):
            if total + size <= self._bound:
                return
            path.unlink(missing_ok=True)
            total -= old

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        locks = self.folder / ".locks"
        try:
            locks.mkdir(parents=True, exist_ok=True)
            lock = (locks / name).open("w")
        except OSError as error:
            raise self._refused(error) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _refused(self, error: OSError) -> DataError:
        return DataError(
            f"the cache of remote shards {self.folder} cannot be written ({error}); make room, or "
            "set data.remote.cache_dir or data.remote.cache_gib"
        )


def _digest(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode())


def _stretch(path: Path, start: int, end: int) -> bytes | None:
    """Bytes of a chunk that is there, which is marked as read; None where it is not."""
    try:
        with path.open("rb", buffering=0) as stream:
            found = os.pread(stream.fileno(), end - start, start)
            os.utime(stream.fileno())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found
