from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from vltrain.data.chunkcache import ChunkCache
from vltrain.errors import DataError


def held(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_size for p in folder.glob("*/*.chunk")}


def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    cache, fetched = ChunkCache(tmp_path, bound_bytes=100), []

    def fetch() -> bytes:
        fetched.append(1)
        return bytes(range(10))

    assert not cache.holds("x", 3)
    assert cache.read("x", 3, start=2, end=5, fetch=fetch) == b"\x02\x03\x04"
    assert cache.read("x", 3, start=9, end=10, fetch=fetch) == b"\x09"
    assert ChunkCache(tmp_path, bound_bytes=100).read("x", 3, start=0, end=1, fetch=fetch) == b"\0"
    assert len(fetched) == 1
    assert cache.holds("x", 3)


def test_the_bound_holds_and_what_was_read_last_stays(tmp_path: Path) -> None:
    cache = ChunkCache(tmp_path, bound_bytes=35)
    for chunk in range(3):
        cache.read("x", chunk, start=0, end=1, fetch=lambda: b"0123456789")
        os.utime(tmp_path / "x" / f"{chunk}.chunk", ns=(chunk + 1, chunk + 1))
    cache.read("x", 0, start=0, end=1, fetch=bytes)  # read again: 1 is the oldest now
    cache.read("x", 3, start=0, end=1, fetch=lambda: b"0123456789")
    assert held(tmp_path) == {"0.chunk": 10, "2.chunk": 10, "3.chunk": 10}
    cache.read("x", 4, start=0, end=1, fetch=lambda: b"0" * 30)
    assert held(tmp_path) == {"4.chunk": 30}


def test_a_fetch_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fetch() -> bytes:
        raise DataError("gone")

    cache = ChunkCache(tmp_path, bound_bytes=100)
    with pytest.raises(DataError, match="gone"):
        cache.read("x", 0, start=0, end=1, fetch=fetch)
    assert held(tmp_path) == {}
    assert cache.read("x", 0, start=0, end=1, fetch=lambda: b"a") == b"a"


def _read_slowly(folder: Path, log: Path) -> None:
    def fetch() -> bytes:
        with log.open("a") as stream:
            stream.write("x")
        time.sleep(0.3)
        return b"abc"

    assert ChunkCache(folder, bound_bytes=100).read("x", 0, start=1, end=3, fetch=fetch) == b"bc"


def test_processes_that_want_the_same_wait_for_one_download(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_read_slowly, args=(tmp_path / "cache", tmp_path / "log"))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "log").read_text() == "x"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = ChunkCache(tmp_path / "file", bound_bytes=100)
    with pytest.raises(DataError, match=r"cannot be written .*data\.remote\.cache_dir"):
        cache.read("x", 0, start=0, end=1, fetch=lambda: b"a")
