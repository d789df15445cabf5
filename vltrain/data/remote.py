"""Shards that lie behind a URL, read through fsspec.

In: URLs of allowed schemes. Out: size and version of a file, and stretches of its bytes, through
the node's ``ChunkCache`` with some chunks read ahead. A failure of the store is tried again, each
time after twice the wait; after the last try, or when the file is not there, the run ends with what
was wanted and what the store said. Credentials are where each store's own tools look for them,
never in a URL's words or the config. Rejected: downloading whole shards (a block of neighbours is a
hundredth of one), fsspec's own caches (unbounded, or one for each process).
"""

from __future__ import annotations

import importlib
import logging
import queue
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import xxhash

from vltrain.data.chunkcache import ChunkCache
from vltrain.data.config import RemoteConfig, SourceConfig
from vltrain.data.layout import RemoteShard, Shard, expand_braces, find_shards, is_url
from vltrain.errors import ConfigError, DataError

log = logging.getLogger(__name__)

_Found = TypeVar("_Found")
LONGEST_WAIT_SECONDS = 60.0
_LIBRARIES = ("aiohttp", "asyncio", "botocore", "fsspec", "gcsfs", "requests", "s3fs", "urllib3")
"""Whose errors are the store's. Each has its own family of them, and few are OSErrors."""
_VERSIONS = ("ETag", "etag", "md5Hash", "LastModified", "Last-Modified", "updated", "mtime")
_FINAL_STATUS = (401, 403, 404, 410)
_REMEMBERED = 4096
"""Chunks that a process knows it has asked to read ahead."""


class RemoteStore:
    """Reads remote shards. Picklable: every process opens its own connections."""

    def __init__(self, config: RemoteConfig) -> None:
        self._config = config
        folder = config.cache_dir or f"{tempfile.gettempdir()}/vltrain-shards"
        self._cache = ChunkCache(Path(folder), bound_bytes=int(config.cache_gib * 2**30))
        self._chunk_bytes = int(config.chunk_mib * 2**20)
        if self._chunk_bytes < 1 or config.cache_gib * 1024 < config.chunk_mib * 4:
            raise ConfigError(
                f"data.remote.cache_gib={config.cache_gib} with data.remote.chunk_mib="
                f"{config.chunk_mib}: the cache must hold at least four chunks"
            )
        if config.tries < 1 or not config.backoff_seconds >= 0:
            raise ConfigError(
                f"data.remote.tries={config.tries} and data.remote.backoff_seconds="
                f"{config.backoff_seconds}: at least one try, and waits of 0 seconds or more"
            )
        self._connect()

    def _connect(self) -> None:
        self._opened: dict[str, Any] = {}
        self._ahead: queue.Queue[tuple[RemoteShard, int, int, int]] = queue.Queue(maxsize=64)
        self._asked: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._reader: threading.Thread | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_config": self._config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_config"])

    def check_scheme(self, url: str, *, where: str) -> None:
        """Raise ConfigError for a URL that data.remote.schemes does not allow."""
        scheme = url.partition("://")[0]
        if scheme not in self._config.schemes:
            raise ConfigError(
                f"{where}: {scheme}:// is not among data.remote.schemes="
                f"{list(self._config.schemes)}; add it there if shards may come from such URLs"
            )

    def stat(self, shard: RemoteShard) -> tuple[int, int]:
        """Bytes, and a number (63 bits) that changes with the content where the store says so.
        Raises DataError."""
        info = self._tried(shard, lambda: self._store(shard).info(shard.url), tries=None)
        size = info.get("size")
        if not isinstance(size, int):
            raise DataError(f"{shard}: the store does not say how large the file is")
        said = next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
        return size, xxhash.xxh3_64_intdigest(said.encode()) >> 1

    def read(self, shard: RemoteShard, offset: int, size: int, *, file: tuple[int, int]) -> bytes:
        """Bytes of a shard, through the cache. file: what ``stat`` said. Raises DataError."""
        total, version = file
        parts = []
        for chunk in range(offset // self._chunk_bytes, -(-(offset + size) // self._chunk_bytes)):
            first = chunk * self._chunk_bytes
            parts.append(
                self._cache.read(
                    self._cache_name(shard, version),
                    chunk,
                    start=max(0, offset - first),
                    end=min(self._chunk_bytes, offset + size - first),
                    fetch=lambda chunk=chunk: self._fetch(shard, chunk, total, tries=None),
                )
            )
            self._read_ahead(shard, chunk, total, version)
        return b"".join(parts)

    def chunks(self, shard: RemoteShard, *, file: tuple[int, int]) -> Iterator[bytes]:
        """All bytes of a shard, past the cache: for one pass over the whole. Raises DataError."""
        for chunk in range(-(-file[0] // self._chunk_bytes)):
            yield self._fetch(shard, chunk, file[0], tries=None)

    def scratch(self) -> Path:
        """A folder of this node for a whole shard, while it is indexed."""
        folder = self._cache.folder / ".whole"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _fetch(self, shard: RemoteShard, chunk: int, total: int, *, tries: int | None) -> bytes:
        start = chunk * self._chunk_bytes
        end = min(start + self._chunk_bytes, total)

        def once() -> bytes:
            data = self._store(shard).cat_file(shard.url, start=start, end=end)
            if len(data) < end - start:
                raise ConnectionError(f"bytes {start} to {end} came as {len(data)} bytes")
            return data

        data = self._tried(shard, once, tries=tries)
        if len(data) > end - start:
            raise DataError(
                f"{shard}: bytes {start} to {end} were asked for and {len(data)} came: the server "
                "does not serve parts of files; copy the shards to a local folder"
            )
        return data

    def _tried(
        self, shard: RemoteShard, once: Callable[[], _Found], *, tries: int | None
    ) -> _Found:
        """What ``once`` gives, tried again while the store fails."""
        tries = tries or self._config.tries
        wait, begun = self._config.backoff_seconds, time.monotonic()
        for attempt in range(1, tries + 1):
            try:
                return once()
            except Exception as error:
                if not _is_the_stores(error):
                    raise
                if _is_final(error):
                    raise DataError(
                        f"{shard} cannot be read: {type(error).__name__}: {error}; put it back, "
                        "mend the credentials, or correct the source's path"
                    ) from error
                last = error
            if attempt < tries:
                log.warning("%s: try %d of %d failed: %r", shard, attempt, tries, last)
                time.sleep(min(wait, LONGEST_WAIT_SECONDS))
                wait *= 2
        raise DataError(
            f"{shard} cannot be read: the store failed {tries} times in "
            f"{time.monotonic() - begun:.0f} s (data.remote.tries, data.remote.backoff_seconds), "
            f"last with {type(last).__name__}: {last}. When the store is there again, the same "
            "command goes on"
        )

    def _store(self, shard: RemoteShard) -> Any:
        scheme = shard.url.partition("://")[0]
        if scheme not in self._opened:
            options: dict[str, Any] = {}
            if scheme in ("http", "https"):
                options["client_kwargs"] = {"timeout": self._http_timeout()}
            try:
                self._opened[scheme] = fsspec.filesystem(scheme, **options)
            except (ImportError, ValueError) as error:
                raise ConfigError(_no_library(scheme, error)) from error
        return self._opened[scheme]

    def _http_timeout(self) -> Any:
        try:
            aiohttp = importlib.import_module("aiohttp")  # comes with fsspec[http], not with us
        except ImportError as error:
            raise ConfigError(_no_library("https", error)) from error
        return aiohttp.ClientTimeout(total=self._config.timeout_seconds)

    def _cache_name(self, shard: RemoteShard, version: int) -> str:
        """With the chunks' size, by which their numbers mean other bytes: runs of a node may share
        the cache and differ in it."""
        named = f"{shard.url}#{version}#{self._chunk_bytes}"
        return xxhash.xxh3_128_hexdigest(named.encode())

    def _read_ahead(self, shard: RemoteShard, chunk: int, total: int, version: int) -> None:
        """Ask for the chunks after this one, once each."""
        last = -(-total // self._chunk_bytes) - 1
        for following in range(chunk + 1, min(chunk + self._config.read_ahead, last) + 1):
            key = (f"{shard.url}#{version}", following)
            if key in self._asked:
                continue
            self._asked[key] = None
            if len(self._asked) > _REMEMBERED:
                self._asked.popitem(last=False)
            if self._reader is None:
                # A daemon: what it still waits for must not keep a process from ending.
                self._reader = threading.Thread(target=self._ahead_of_need, daemon=True)
                self._reader.start()
            try:
                self._ahead.put_nowait((shard, following, total, version))
            except queue.Full:
                return  # it is behind already

    def _ahead_of_need(self) -> None:
        while True:
            shard, chunk, total, version = self._ahead.get()
            name = self._cache_name(shard, version)
            if self._cache.holds(name, chunk):
                continue
            try:
                self._cache.read(
                    name,
                    chunk,
                    start=0,
                    end=0,
                    fetch=lambda s=shard, c=chunk, t=total: self._fetch(s, c, t, tries=1),
                )
            except DataError as error:  # whoever needs the chunk meets the same, and says so
                log.debug("not read ahead: %s", error)


def source_shards(name: str, config: SourceConfig, *, remote: RemoteStore | None) -> list[Shard]:
    """The shards of a source, local or behind URLs, sorted.

    Raises DataError as ``find_shards`` does, and ConfigError for a URL that the config does not
    allow, that is a folder or a ``*``, or whose source has no index_dir.
    """
    if not is_url(config.path):
        return list(find_shards(name, config.path))
    where = f"source {name!r}: path={config.path}"
    if remote is None:
        raise ConfigError(f"{where}: only local shards can be read here; copy them to a folder")
    remote.check_scheme(config.path, where=where)
    shards = named_shards(config.path, where=where)
    if config.index_dir is None or is_url(config.index_dir):
        raise ConfigError(
            f"{where}: shards behind a URL need index_dir, a local folder for their index and "
            "token tables"
        )
    return list(shards)


def named_shards(path: str, *, where: str) -> list[RemoteShard]:
    """The shards that a URL with braces names, sorted. Raises ConfigError for a folder or a ``*``,
    DataError for two of one name."""
    if "*" in path or not path.lower().endswith(".tar"):
        raise ConfigError(
            f"{where}: a store is not listed; name its shards, as in "
            "https://host/folder/x-{000000..000127}.tar"
        )
    shards = [RemoteShard(url) for url in expand_braces(path)]
    if len({shard.name for shard in shards}) != len(shards):
        raise DataError(f"{where} names two shards of the same file name; give them two sources")
    return sorted(shards)


def _is_the_stores(error: Exception) -> bool:
    return isinstance(error, OSError | TimeoutError) or any(
        kind.__module__.partition(".")[0] in _LIBRARIES for kind in type(error).__mro__
    )


def _is_final(error: Exception) -> bool:
    """Whether the store says that there is no such file, or not for us. (fsspec's http raises
    FileNotFoundError for every failure of a first request; what it was is the cause.)"""
    status = getattr(error.__cause__ or error, "status", None)
    if status is not None:
        return status in _FINAL_STATUS
    return isinstance(error, FileNotFoundError | PermissionError)


def _no_library(scheme: str, error: Exception) -> str:
    extra = {"http": "fsspec[http]", "https": "fsspec[http]", "s3": "s3fs", "gs": "gcsfs"}
    return (
        f"shards behind {scheme}:// need a library that is not installed ({error}); run: pip "
        f"install '{extra.get(scheme, 'fsspec')}'"
    )
