"""One shard's part of preparing, and the processes that do it.

In: jobs (a shard and the token tables that sources need of it) and encoders by digest. Out: the
facts of its index and tables, as found or made. Costs one pass over a shard that is not fresh,
some file opens for one that is.
"""

from __future__ import annotations

import mmap
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from vltrain.data.columns import read_facts
from vltrain.data.config import KeyRule
from vltrain.data.index import (
    IndexFacts,
    ShardIndex,
    build_index,
    index_keys,
    is_fresh,
    open_index,
)
from vltrain.data.layout import Shard, index_path, table_path
from vltrain.data.remote import RemoteStore
from vltrain.data.shardfile import mapped, stamp_of
from vltrain.data.sidecar import (
    TableFacts,
    TableSpec,
    build_table,
    build_table_without,
    table_is_fresh,
)
from vltrain.errors import DataError
from vltrain.processing.encode import Encoder


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardJob:
    """One shard, with every table that some source needs of it. excluded: its listed keys, by the
    digest of the list."""

    shard: Shard
    remote: RemoteStore | None
    index_dir: str | None
    keys: KeyRule
    source: str
    specs: tuple[TableSpec, ...]
    excluded: Mapping[str, frozenset[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardDone:
    """What a job found or made; ``error`` is what is wrong with the shard as a whole."""

    index: IndexFacts | None = None
    tables: Mapping[str, TableFacts]
    built: bool = False
    error: str = ""


def run_jobs(
    jobs: dict[Path, ShardJob], encoders: dict[str, Encoder], *, workers: int
) -> Iterator[tuple[Path, ShardDone]]:
    """Results as they come."""
    if workers == 0 or len(jobs) == 1:
        for path, job in jobs.items():
            yield path, _run(job, encoders)
        return
    pool = ProcessPoolExecutor(
        max_workers=min(workers, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(encoders,),
    )
    try:
        waiting = {pool.submit(_run_in_worker, job): path for path, job in jobs.items()}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    except BrokenProcessPool as error:
        raise DataError(
            f"a worker process of prepare was killed (out of memory?); run it again with fewer "
            f"workers than {workers}: what is done is kept"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker_encoders: dict[str, Encoder] = {}


def _start_worker(encoders: dict[str, Encoder]) -> None:
    """Give a worker its encoders once: a tokenizer is megabytes, a job is not."""
    _worker_encoders.update(encoders)


def _run_in_worker(job: ShardJob) -> ShardDone:
    return _run(job, _worker_encoders)


def _run(job: ShardJob, encoders: Mapping[str, Encoder]) -> ShardDone:
    """Bring a shard's index and tables up to date."""
    try:
        stamp = stamp_of(job.shard, remote=job.remote)
        present = read_facts(index_path(job.shard, job.index_dir))
        built = not is_fresh(present, stamp) or index_keys(present) is not job.keys
        # A table with an exclusion list is made from the whole one.
        whole = dict.fromkeys(replace(spec, exclude="") for spec in job.specs)
        with ExitStack() as stack:
            data = None
            if built:
                data = stack.enter_context(mapped(job.shard, remote=job.remote))
                build_index(job.shard, data, stamp=stamp, index_dir=job.index_dir, keys=job.keys)
            index = open_index(job.shard, index_dir=job.index_dir, source=job.source)
            tables, missing = _present_tables(job, index, whole)
            if missing:
                data = data or stack.enter_context(mapped(job.shard, remote=job.remote))
                tables |= _build_tables(job, index, missing, encoders, data)
        listed, without = _present_tables(job, index, [s for s in job.specs if s.exclude])
        for spec in without:
            listed[spec.key] = build_table_without(
                job.shard,
                index,
                index_dir=job.index_dir,
                spec=spec,
                whole=tables[replace(spec, exclude="").key],
                keys=job.excluded[spec.exclude],
            )
        built = built or bool(missing or without)
    except DataError as error:
        return ShardDone(tables={}, error=str(error))
    except OSError as error:  # a full disk, a folder in the place of a shard, no permission
        said = f"{job.shard} cannot be prepared: {error}; make room, mend the permissions or"
        return ShardDone(tables={}, error=f"{said} correct the path (what is done is kept)")
    return ShardDone(index=index.facts, tables=tables | listed, built=built)


def _present_tables(
    job: ShardJob, index: ShardIndex, specs: Iterable[TableSpec]
) -> tuple[dict[str, TableFacts], list[TableSpec]]:
    """The tables that are there and fresh, by key, and the specs of the others."""
    tables, missing = {}, []
    for spec in specs:
        facts = read_facts(table_path(job.shard, job.index_dir, spec.key))
        if facts is not None and table_is_fresh(facts, index.facts):
            tables[spec.key] = TableFacts.from_json(facts)
        else:
            missing.append(spec)
    return tables, missing


def _build_tables(
    job: ShardJob,
    index: ShardIndex,
    specs: list[TableSpec],
    encoders: Mapping[str, Encoder],
    data: mmap.mmap,
) -> dict[str, TableFacts]:
    return {
        spec.key: build_table(
            job.shard,
            index,
            index_dir=job.index_dir,
            source=job.source,
            spec=spec,
            encoder=encoders[spec.encoder],
            read=lambda member: data[member.offset : member.offset + member.size],
        )
        for spec in specs
    }
