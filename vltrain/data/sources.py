"""A source: its shards, checked against their indexes.

In: a source's name and config. Out: a Source, whose shards all exist, are indexed and unchanged.
Costs a folder listing, one catalog and one stat per shard; no shard is opened. A source that does
not pass is refused here, before anything trains.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from vltrain.data.columns import read_catalog
from vltrain.data.config import SourceConfig
from vltrain.data.index import IndexFacts, ShardIndex, check_index, index_keys, open_index
from vltrain.data.layout import (
    CATALOG_NAME,
    INDEX_FOLDER,
    PREPARE_COMMAND,
    Shard,
    index_folder,
    index_path,
)
from vltrain.data.records import check_fields
from vltrain.data.remote import RemoteStore, source_shards
from vltrain.errors import DataError

_Opened = TypeVar("_Opened")
SHOWN_GONE = 3
OPEN_INDEXES = 256
"""Opened indexes kept by a process and source (a map of the file each)."""


class RecentlyUsed(Generic[_Opened]):
    """Opens things by number and keeps the last ``capacity`` of them; nothing of it is
    pickled."""

    def __init__(
        self,
        opener: Callable[[int], _Opened],
        *,
        capacity: int,
        closer: Callable[[_Opened], None] | None = None,
    ) -> None:
        self._opener, self._closer, self._capacity = opener, closer, capacity
        self._kept: OrderedDict[int, _Opened] = OrderedDict()

    def get(self, number: int) -> _Opened:
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        opened = self._opener(number)
        self._kept[number] = opened
        if len(self._kept) > self._capacity:
            _, oldest = self._kept.popitem(last=False)
            if self._closer is not None:
                self._closer(oldest)
        return opened

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict()}


class Source:
    """An opened source. ``shards`` are sorted; ``indexes`` are the facts of their indexes."""

    def __init__(
        self,
        name: str,
        *,
        config: SourceConfig,
        shards: tuple[Shard, ...],
        indexes: tuple[IndexFacts, ...],
        remote: RemoteStore | None = None,
    ) -> None:
        self.name, self.config, self.remote = name, config, remote
        self.shards, self.indexes = shards, indexes
        self._opened = RecentlyUsed(self._open, capacity=OPEN_INDEXES)

    def index(self, shard: int) -> ShardIndex:
        """The index of shard number ``shard``, opened when first asked for."""
        return self._opened.get(shard)

    def _open(self, shard: int) -> ShardIndex:
        path, index_dir = self.shards[shard], self.config.index_dir
        index = open_index(path, index_dir=index_dir, source=self.name)
        ours = self.indexes[shard]
        if (index.facts.xxh3_128, index.facts.keys) != (ours.xxh3_128, ours.keys):
            raise DataError(
                f"source {self.name!r}: the index {index_path(path, index_dir)} was made anew, "
                f"with keys={index.facts.keys}, and is not the one that {CATALOG_NAME} beside it "
                f"tells of (a prepare was interrupted, or runs now); run: {PREPARE_COMMAND}"
            )
        return index


def open_source(name: str, config: SourceConfig, *, remote: RemoteStore | None = None) -> Source:
    """Find and check the shards of a source. Raises DataError (no shards, no index, stale index)
    and ConfigError (unknown field; a URL, without ``remote``)."""
    check_fields(name, kind=config.kind, fields=config.fields)
    shards = tuple(source_shards(name, config, remote=remote))
    catalogs: dict[Path, dict[str, Any]] = {}
    facts = []
    for shard in shards:
        folder = index_folder(shard, config.index_dir)
        if folder not in catalogs:
            catalogs[folder] = (read_catalog(folder) or {}).get("shards", {})
        found = catalogs[folder].get(shard.name)
        found = check_index(found, shard, source=name, path=folder)
        if index_keys(found) is not config.keys:
            raise DataError(
                f"source {name!r}: the index of {shard} was made with keys="
                f"{index_keys(found).value}, the source has keys={config.keys.value}; run: "
                f"{PREPARE_COMMAND}"
            )
        facts.append(IndexFacts(**found))
    _refuse_gone(name, config)
    return Source(name, config=config, shards=shards, indexes=tuple(facts), remote=remote)


def gone_shards(folder: Path) -> list[str]:
    """Names that were indexed in ``folder`` (its INDEX_FOLDER), and are no files there any more."""
    known = (read_catalog(folder / INDEX_FOLDER) or {}).get("shards", {})
    return sorted(name for name in known if not (folder / name).exists())


def _refuse_gone(source: str, config: SourceConfig) -> None:
    """A folder is all that is in it, so nothing else would tell that a shard of it is missing."""
    folder = Path(config.path)
    if config.index_dir is not None or not folder.is_dir():
        return
    if gone := gone_shards(folder):
        more = ", ..." if len(gone) > SHOWN_GONE else ""
        raise DataError(
            f"source {source!r}: {len(gone)} shards that were indexed in {folder} are not there "
            f"any more: {', '.join(gone[:SHOWN_GONE])}{more}. Bring them back; or, if they are "
            f"meant to be gone, run: {PREPARE_COMMAND}"
        )
