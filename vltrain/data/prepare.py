"""Makes index and token tables of sources: what ``launch/prepare.py`` runs.

In: sources (name -> config) and the encoder of each. Out: an index and a token table for every
shard, the catalogs, and a report. Work is one job per shard, over processes; each shard is read
once, whatever number of sources draw it. What is already there and fresh is kept, so a killed run
continues, and new shards extend a source. Costs one pass over the bytes and one tokenization of
the text.

Catalogs are written last, and a source over its fault budget does not enter them: then ``train``
refuses it, and the list of bad records lies beside the tables.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from vltrain.batch import Fault, Origin
from vltrain.data.columns import extend_catalog, write_json
from vltrain.data.config import FaultConfig, SourceConfig
from vltrain.data.faults import budget_message, over_budget
from vltrain.data.index import IndexFacts, open_index
from vltrain.data.layout import (
    INDEX_SCHEMA,
    TABLE_SCHEMA,
    find_shards,
    index_folder,
    index_path,
    table_folder,
)
from vltrain.data.records import check_fields
from vltrain.data.report import PrepareReport, SourceReport, source_report
from vltrain.data.shardjob import ShardDone, ShardJob, run_jobs
from vltrain.data.sidecar import TableFacts, TableSpec, table_spec
from vltrain.errors import DataError, FaultBudgetExceeded
from vltrain.processing.encode import Encoder

logger = logging.getLogger(__name__)
SHOWN_ERRORS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareProgress:
    """Given to the progress callback after every shard. ``samples``: of the shards done so
    far."""

    done_shards: int
    total_shards: int
    samples: int
    seconds: float
    shard: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Leaf:
    """A source to prepare."""

    name: str
    config: SourceConfig
    shards: tuple[Path, ...]
    spec: TableSpec


def prepare_sources(
    sources: Mapping[str, SourceConfig],
    *,
    encoder_for: Callable[[SourceConfig], Encoder],
    workers: int,
    faults: FaultConfig,
    progress: Callable[[PrepareProgress], None] | None = None,
) -> PrepareReport:
    """Index and measure every shard of the sources; keep what is fresh.

    workers: processes; 0 works in this one. Raises DataError naming every shard that cannot be
    used, and FaultBudgetExceeded when a source holds more unusable records than ``faults`` bears.
    """
    leaves, encoders = [], {}
    for name, config in sources.items():
        check_fields(name, kind=config.kind, fields=config.fields)
        encoder = encoder_for(config)
        encoders[encoder.digest] = encoder
        spec = table_spec(config, encoder_digest=encoder.digest)
        shards = tuple(find_shards(name, config.path))
        leaves.append(_Leaf(name=name, config=config, shards=shards, spec=spec))
    jobs = _jobs(leaves)
    done = _run_all(jobs, encoders, workers=workers, progress=progress)
    errors = [f"source {jobs[path].source!r}: {d.error}" for path, d in done.items() if d.error]
    if errors:
        more = len(errors) - SHOWN_ERRORS
        raise DataError("\n".join(errors[:SHOWN_ERRORS] + [f"... and {more} more"] * (more > 0)))
    for leaf in leaves:
        _check_budget(leaf, done, faults=faults)
    for leaf in leaves:
        _write_catalogs(leaf, done)
    reports = [_report(leaf, done) for leaf in leaves]
    for report in reports:
        logger.info("%s", report.summary())
    return PrepareReport(sources=tuple(reports))


def _jobs(leaves: list[_Leaf]) -> dict[Path, ShardJob]:
    """One job per index file, in order. Raises DataError when two shards would share one."""
    jobs: dict[Path, ShardJob] = {}
    for leaf in leaves:
        for shard in leaf.shards:
            path = _job_key(leaf, shard)
            present = jobs.get(path)
            if present is not None and present.shard.resolve() != shard.resolve():
                raise DataError(
                    f"source {leaf.name!r}: {shard} and {present.shard} would share the index "
                    f"{path}; give their sources different index_dir folders"
                )
            specs = (present.specs if present else ()) + (leaf.spec,)
            jobs[path] = ShardJob(
                shard=shard,
                index_dir=leaf.config.index_dir,
                source=present.source if present else leaf.name,
                specs=tuple(dict.fromkeys(specs)),
            )
    return jobs


def _job_key(leaf: _Leaf, shard: Path) -> Path:
    """One spelling of the place of a shard's index, however the sources write their paths."""
    return index_path(shard, leaf.config.index_dir).resolve()


def _run_all(
    jobs: dict[Path, ShardJob],
    encoders: dict[str, Encoder],
    *,
    workers: int,
    progress: Callable[[PrepareProgress], None] | None,
) -> dict[Path, ShardDone]:
    begun, samples = time.monotonic(), 0
    done: dict[Path, ShardDone] = {}
    for path, result in run_jobs(jobs, encoders, workers=workers):
        done[path] = result
        samples += result.index.samples if result.index else 0
        if progress is not None:
            progress(
                PrepareProgress(
                    done_shards=len(done),
                    total_shards=len(jobs),
                    samples=samples,
                    seconds=time.monotonic() - begun,
                    shard=jobs[path].shard.name,
                )
            )
    return {path: done[path] for path in jobs}


def _leaf_results(
    leaf: _Leaf, done: Mapping[Path, ShardDone]
) -> Iterator[tuple[Path, IndexFacts, TableFacts, bool]]:
    """(shard, index, table, made anew) of each shard of a leaf."""
    for shard in leaf.shards:
        result = done[_job_key(leaf, shard)]
        assert result.index is not None
        yield shard, result.index, result.tables[leaf.spec.key], result.built


def _check_budget(leaf: _Leaf, done: Mapping[Path, ShardDone], *, faults: FaultConfig) -> None:
    bad, read = [], 0
    for shard, _, table, _ in _leaf_results(leaf, done):
        read += table.samples
        for row in table.excluded:
            origin = Origin(source=leaf.name, shard=shard.name, key=row.key)
            bad.append(
                Fault(origin=origin, reason=row.reason, detail=row.detail, action="excluded")
            )
    if not over_budget(len(bad), read=read, faults=faults):
        return
    folder = table_folder(index_folder(leaf.shards[0], leaf.config.index_dir), leaf.spec.key)
    path = folder / f"excluded-{leaf.name}.json"
    write_json(path, [asdict(fault) for fault in bad])
    raise FaultBudgetExceeded(
        budget_message(leaf.name, bad, bad=len(bad), read=read, faults=faults, full=path)
    )


def _write_catalogs(leaf: _Leaf, done: Mapping[Path, ShardDone]) -> None:
    indexes: dict[Path, dict[str, dict]] = {}
    tables: dict[Path, dict[str, dict]] = {}
    for shard, index, table, _ in _leaf_results(leaf, done):
        folder = index_folder(shard, leaf.config.index_dir)
        indexes.setdefault(folder, {})[shard.name] = asdict(index)
        tables.setdefault(table_folder(folder, leaf.spec.key), {})[shard.name] = table.as_json()
    for folder, shards in indexes.items():
        extend_catalog(folder, header={"schema": INDEX_SCHEMA}, shards=shards)
    for folder, shards in tables.items():
        header = {"schema": TABLE_SCHEMA, **leaf.spec.as_json()}
        extend_catalog(folder, header=header, shards=shards)


def _report(leaf: _Leaf, done: Mapping[Path, ShardDone]) -> SourceReport:
    results = list(_leaf_results(leaf, done))
    opened = (
        open_index(shard, index_dir=leaf.config.index_dir, source=leaf.name)
        for shard in leaf.shards
    )
    return source_report(
        leaf.name,
        modality=leaf.config.modality,
        indexes=[index for _, index, _, _ in results],
        tables=[table for _, _, table, _ in results],
        built_shards=sum(built for *_, built in results),
        opened=opened,
    )
