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
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vltrain.batch import Fault, Origin
from vltrain.data.columns import extend_catalog, write_json
from vltrain.data.config import FaultConfig, SourceConfig
from vltrain.data.exclusion import LISTED, ExclusionList, read_exclusions
from vltrain.data.faults import budget_message, over_budget
from vltrain.data.index import IndexFacts, open_index
from vltrain.data.layout import (
    INDEX_SCHEMA,
    TABLE_SCHEMA,
    RemoteShard,
    Shard,
    index_folder,
    index_path,
    table_folder,
)
from vltrain.data.propose import propose_source
from vltrain.data.records import check_fields
from vltrain.data.remote import RemoteStore, source_shards
from vltrain.data.report import PrepareReport, SourceReport, source_report
from vltrain.data.shardjob import ShardDone, ShardJob, run_jobs
from vltrain.data.sidecar import TableFacts, TableSpec, table_spec
from vltrain.data.sources import gone_shards
from vltrain.errors import DataError, FaultBudgetExceeded
from vltrain.processing.encode import Encoder

log = logging.getLogger(__name__)

SHOWN_ERRORS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareProgress:
    """Given to the progress callback after every shard. ``samples``, ``done_bytes``: of the shards
    done so far; bytes are those of local shards (asking a store for each would take minutes)."""

    done_shards: int
    total_shards: int
    done_bytes: int
    total_bytes: int
    samples: int
    seconds: float
    shard: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Leaf:
    """A source to prepare."""

    name: str
    config: SourceConfig
    shards: tuple[Shard, ...]
    spec: TableSpec
    exclusions: ExclusionList


def prepare_sources(
    sources: Mapping[str, SourceConfig],
    *,
    encoder_for: Callable[[SourceConfig], Encoder],
    workers: int,
    faults: FaultConfig,
    remote: RemoteStore | None = None,
    progress: Callable[[PrepareProgress], None] | None = None,
    draw: Callable[[SourceReport, Path], None] | None = None,
) -> PrepareReport:
    """Index and measure every shard of the sources; keep what is fresh.

    workers: processes; 0 works in this one. draw: makes the chart of a source as a PNG beside its
    report-NAME.json. Raises DataError naming every shard that cannot be
    used, and FaultBudgetExceeded when a source holds more unusable records than ``faults`` bears.
    """
    leaves, encoders = [], {}
    for name, config in sources.items():
        check_fields(name, kind=config.kind, fields=config.fields)
        encoder = encoder_for(config)
        encoders[encoder.digest] = encoder
        spec = table_spec(config, encoder_digest=encoder.digest)
        shards = tuple(source_shards(name, config, remote=remote))
        leaves.append(
            _Leaf(
                name=name,
                config=config,
                shards=shards,
                spec=spec,
                exclusions=read_exclusions(config.exclude),
            )
        )
    jobs = _jobs(leaves, remote=remote)
    done = _run_all(jobs, encoders, workers=workers, progress=progress)
    errors = [f"source {jobs[path].source!r}: {d.error}" for path, d in done.items() if d.error]
    if errors:
        more = len(errors) - SHOWN_ERRORS
        raise DataError("\n".join(errors[:SHOWN_ERRORS] + [f"... and {more} more"] * (more > 0)))
    for leaf in leaves:
        _check_fit(leaf, done, remote=remote)
        _check_budget(leaf, done, faults=faults)
    for leaf in leaves:
        _write_catalogs(leaf, done)
    reports = [_report(leaf, done) for leaf in leaves]
    for leaf, report in zip(leaves, reports, strict=True):
        write_json(_beside(leaf, f"report-{leaf.name}.json"), report.as_json())
        if draw is not None:
            draw(report, _beside(leaf, f"report-{leaf.name}.png"))
    return PrepareReport(sources=tuple(reports))


def _jobs(leaves: list[_Leaf], *, remote: RemoteStore | None) -> dict[Path, ShardJob]:
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
            if present is not None and present.keys is not leaf.config.keys:
                raise DataError(
                    f"sources {present.source!r} and {leaf.name!r} split the names in {shard} "
                    f"differently (keys={present.keys.value} and keys={leaf.config.keys.value}); "
                    "give them one rule, or different index_dir folders"
                )
            specs = (present.specs if present else ()) + (leaf.spec,)
            excluded = dict(present.excluded) if present else {}
            excluded[leaf.exclusions.digest] = leaf.exclusions.keys.get(shard.name, frozenset())
            jobs[path] = ShardJob(
                shard=shard,
                remote=remote,
                index_dir=leaf.config.index_dir,
                keys=leaf.config.keys,
                source=present.source if present else leaf.name,
                specs=tuple(dict.fromkeys(specs)),
                excluded=excluded,
            )
    return jobs


def _job_key(leaf: _Leaf, shard: Shard) -> Path:
    """One spelling of the place of a shard's index, however the sources write their paths."""
    return index_path(shard, leaf.config.index_dir).resolve()


def _run_all(
    jobs: dict[Path, ShardJob],
    encoders: dict[str, Encoder],
    *,
    workers: int,
    progress: Callable[[PrepareProgress], None] | None,
) -> dict[Path, ShardDone]:
    begun, samples, done_bytes = time.monotonic(), 0, 0
    sizes = {
        path: 0 if isinstance(job.shard, RemoteShard) else job.shard.stat().st_size
        for path, job in jobs.items()
    }
    done: dict[Path, ShardDone] = {}
    for path, result in run_jobs(jobs, encoders, workers=workers):
        done[path] = result
        samples += result.index.samples if result.index else 0
        done_bytes += sizes[path]
        if progress is not None:
            progress(
                PrepareProgress(
                    done_shards=len(done),
                    total_shards=len(jobs),
                    done_bytes=done_bytes,
                    total_bytes=sum(sizes.values()),
                    samples=samples,
                    seconds=time.monotonic() - begun,
                    shard=jobs[path].shard.name,
                )
            )
    return {path: done[path] for path in jobs}


def _leaf_results(
    leaf: _Leaf, done: Mapping[Path, ShardDone]
) -> Iterator[tuple[Shard, IndexFacts, TableFacts, bool]]:
    """(shard, index, table, made anew) of each shard of a leaf."""
    for shard in leaf.shards:
        result = done[_job_key(leaf, shard)]
        assert result.index is not None
        yield shard, result.index, result.tables[leaf.spec.key], result.built


def _beside(leaf: _Leaf, name: str) -> Path:
    """A file for people among a source's tables."""
    folder = table_folder(index_folder(leaf.shards[0], leaf.config.index_dir), leaf.spec.key)
    return folder / name


def _check_fit(leaf: _Leaf, done: Mapping[Path, ShardDone], *, remote: RemoteStore | None) -> None:
    """Raise DataError with a config that fits where the source's own draws nothing, or cannot read
    half of the records."""
    tables = [table for _, _, table, _ in _leaf_results(leaf, done)]
    read = sum(table.samples for table in tables)
    excluded = [row for table in tables for row in table.excluded if row.reason != LISTED]
    drawn = sum(table.totals[leaf.config.modality.value]["samples"] for table in tables)
    if 2 * len(excluded) <= read and (drawn or leaf.exclusions):
        return
    fitting = propose_source(leaf.shards, remote=remote)
    config = leaf.config
    same = fitting is not None and (
        (fitting.kind, fitting.fields, fitting.keys) == (config.kind, config.fields, config.keys)
        and config.modality in fitting.modalities
    )
    if fitting is None or same:
        return  # the records are bad, not the config: a matter of the budget
    reasons = Counter(row.reason for row in excluded)
    raise DataError(
        f"source {leaf.name!r} does not fit its shards: with kind={config.kind.value}, "
        f"modality={config.modality.value}, fields={config.fields}, keys={config.keys.value} it "
        f"draws {drawn} of {read} records; {len(excluded)} cannot be read, by reason: "
        f"{dict(reasons.most_common())}. This reads {fitting.fits} of the first "
        f"{fitting.looked_at}; put it under sources: of the data config:\n"
        f"{fitting.yaml(name=leaf.name, path=config.path)}"
    )


def _check_budget(leaf: _Leaf, done: Mapping[Path, ShardDone], *, faults: FaultConfig) -> None:
    bad, read = [], 0
    for shard, _, table, _ in _leaf_results(leaf, done):
        read += table.samples
        for row in table.excluded:
            if row.reason == LISTED:
                continue
            origin = Origin(source=leaf.name, shard=shard.name, key=row.key)
            bad.append(
                Fault(origin=origin, reason=row.reason, detail=row.detail, action="excluded")
            )
    if not over_budget(len(bad), read=read, faults=faults):
        return
    path = _beside(leaf, f"excluded-{leaf.name}.json")
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
        gone = gone_shards(folder.parent) if leaf.config.index_dir is None else []
        if gone:
            log.warning("source %s: no longer there, and forgotten: %s", leaf.name, ", ".join(gone))
        extend_catalog(folder, header={"schema": INDEX_SCHEMA}, shards=shards, gone=gone)
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
        unmatched=_unmatched(leaf, [table for _, _, table, _ in results]),
        opened=opened,
    )


def _unmatched(leaf: _Leaf, tables: Sequence[TableFacts]) -> int:
    """Rows of the exclusion list that name no record of the source."""
    found = {
        (shard.name, row.key)
        for shard, table in zip(leaf.shards, tables, strict=True)
        for row in table.excluded
    }
    return sum(
        (shard, key) not in found for shard, keys in leaf.exclusions.keys.items() for key in keys
    )
