"""The token table of a shard: how long every piece of every sample is, before a byte of it is
read.

In: a shard, its index and an encoder. Out: one column file per shard and table key, one row per
piece (sample row, start, tokens, supervised, image tokens, images), and with it the records that
cannot be used, each with its reason. The key covers all that lengths depend on: the encoder's
digest, record kind, field map and what is learned; the table is stale when the shard's content
digest differs. Costs one tokenization of all text, no image decoding.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from vltrain.batch import Learn, Modality, Origin, RecordKind
from vltrain.data.columns import read_catalog, read_columns, write_columns
from vltrain.data.config import KeyRule, SourceConfig
from vltrain.data.exclusion import LISTED, read_exclusions
from vltrain.data.index import IndexFacts, Member, ShardIndex
from vltrain.data.layout import (
    PREPARE_COMMAND,
    TABLE_SCHEMA,
    Shard,
    index_folder,
    table_folder,
    table_path,
)
from vltrain.data.records import parse_record
from vltrain.errors import DataError, RecordFault
from vltrain.processing.encode import Encoder

COUNTED = ("tokens", "supervised", "image_tokens", "images")
COLUMNS = ("row", "start", *COUNTED)


@dataclass(frozen=True, kw_only=True, slots=True)
class TableSpec:
    """What a token table depends on besides the shard. exclude: digest of the exclusion list."""

    encoder: str
    kind: RecordKind
    fields: tuple[tuple[str, str], ...]
    learn: Learn | None
    keys: KeyRule = KeyRule.first_dot
    exclude: str = ""

    @property
    def key(self) -> str:
        """Names the table's folder: 16 hex digits."""
        return xxhash.xxh3_64_hexdigest(json.dumps([TABLE_SCHEMA, self.as_json()]).encode())

    def as_json(self) -> dict[str, Any]:
        """What is not as usual alone is named, so that tables of before keep their key."""
        rare: dict[str, Any] = {}
        if self.keys is not KeyRule.first_dot:
            rare["keys"] = self.keys.value
        if self.exclude:
            rare["exclude"] = self.exclude
        return {
            "encoder": self.encoder,
            "kind": self.kind.value,
            "fields": dict(self.fields),
            "learn": None if self.learn is None else self.learn.value,
            **rare,
        }


def table_spec(config: SourceConfig, *, encoder_digest: str) -> TableSpec:
    """The spec of a source's table. Leaves that differ in modality alone share one. Raises
    DataError where its exclusion list cannot be read."""
    return TableSpec(
        encoder=encoder_digest,
        kind=config.kind,
        fields=tuple(sorted(config.fields.items())),
        learn=config.learn,
        keys=config.keys,
        exclude=read_exclusions(config.exclude).digest,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Excluded:
    """A record that cannot be used."""

    row: int
    key: str
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TableFacts:
    """What the catalog keeps of a shard's table.

    totals: by modality: samples, pieces, tokens, supervised, image_tokens, images. split: samples
    cut into several pieces. histogram: pieces with 2**i <= tokens < 2**(i + 1), i from 0. digest:
    xxh3_128 of the columns.
    """

    schema: int
    shard_xxh3_128: str
    samples: int
    totals: dict[str, dict[str, int]]
    split: int
    histogram: list[int]
    excluded: tuple[Excluded, ...]
    digest: str

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> TableFacts:
        excluded = tuple(Excluded(**row) for row in content["excluded"])
        return cls(**{**content, "excluded": excluded})

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class TableColumns:
    """Rows of pieces as equal-long numpy columns, int32. ``multimodal``: uint8, of the piece's
    sample."""

    row: np.ndarray
    start: np.ndarray
    tokens: np.ndarray
    supervised: np.ndarray
    image_tokens: np.ndarray
    images: np.ndarray
    multimodal: np.ndarray


def build_table(
    shard: Shard,
    index: ShardIndex,
    *,
    index_dir: str | None,
    source: str,
    spec: TableSpec,
    encoder: Encoder,
    read: Callable[[Member], bytes],
) -> TableFacts:
    """Measure every sample of a shard and write its table."""
    rows: list[tuple[int, ...]] = []
    excluded: list[Excluded] = []
    for row in range(len(index)):
        origin = Origin(source=source, shard=shard.name, key=index.key(row))
        try:
            sample = parse_record(
                index.members(row),
                origin=origin,
                kind=spec.kind,
                fields=dict(spec.fields),
                read=read,
            )
            pieces = encoder.measure(sample, learn=spec.learn)
        except RecordFault as fault:
            excluded.append(
                Excluded(row=row, key=origin.key, reason=fault.reason, detail=fault.detail)
            )
            continue
        multimodal = int(bool(sample.images))
        rows += [
            (row, p.start, p.tokens, p.supervised, p.image_tokens, p.images, multimodal)
            for p in pieces
        ]
    columns = _columns(rows)
    facts = _facts(columns, index=index.facts, excluded=tuple(excluded))
    path = table_path(shard, index_dir, spec.key)
    arrays = {name: getattr(columns, name) for name in (*COLUMNS, "multimodal")}
    write_columns(path, arrays, facts=facts.as_json())
    return facts


def build_table_without(
    shard: Shard,
    index: ShardIndex,
    *,
    index_dir: str | None,
    spec: TableSpec,
    whole: TableFacts,
    keys: frozenset[str],
) -> TableFacts:
    """Write the table of a spec with an exclusion list, from the whole one of ``replace(spec,
    exclude="")``: no text is tokenised again. keys: listed records of this shard."""
    columns = open_table(shard, index_dir=index_dir, spec=replace(spec, exclude=""))
    known = {row.row for row in whole.excluded}
    listed = [row for row in range(len(index)) if keys and index.key(row) in keys]
    dropped = [
        Excluded(row=row, key=index.key(row), reason=LISTED, detail="named by the exclusion list")
        for row in listed
        if row not in known
    ]
    kept = ~np.isin(columns.row, listed)
    names = (*COLUMNS, "multimodal")
    columns = TableColumns(**{name: getattr(columns, name)[kept] for name in names})
    excluded = tuple(sorted((*whole.excluded, *dropped), key=lambda row: row.row))
    facts = _facts(columns, index=index.facts, excluded=excluded)
    arrays = {name: getattr(columns, name) for name in names}
    write_columns(table_path(shard, index_dir, spec.key), arrays, facts=facts.as_json())
    return facts


def _columns(rows: list[tuple[int, ...]]) -> TableColumns:
    table = np.array(rows, dtype=np.int32).reshape(len(rows), len(COLUMNS) + 1)
    numbers = {name: np.ascontiguousarray(table[:, i]) for i, name in enumerate(COLUMNS)}
    return TableColumns(**numbers, multimodal=table[:, -1].astype(np.uint8))


def _facts(
    columns: TableColumns, *, index: IndexFacts, excluded: tuple[Excluded, ...]
) -> TableFacts:
    totals = {}
    for modality in Modality:
        mine = columns.multimodal == (modality is Modality.multimodal)
        totals[modality.value] = {
            "samples": len(np.unique(columns.row[mine])),
            "pieces": int(mine.sum()),
            **{name: int(getattr(columns, name)[mine].sum()) for name in COUNTED},
        }
    digest = xxhash.xxh3_128()
    for name in (*COLUMNS, "multimodal"):
        digest.update(getattr(columns, name).tobytes())
    _, pieces_per_sample = np.unique(columns.row, return_counts=True)
    bins = np.bincount(np.log2(np.maximum(columns.tokens, 1)).astype(np.int64))
    return TableFacts(
        schema=TABLE_SCHEMA,
        shard_xxh3_128=index.xxh3_128,
        samples=index.samples,
        totals=totals,
        split=int((pieces_per_sample > 1).sum()),
        histogram=bins.tolist(),
        excluded=excluded,
        digest=digest.hexdigest(),
    )


def table_is_fresh(facts: dict[str, Any] | None, index: IndexFacts) -> bool:
    """Whether table facts belong to the shard's present content."""
    return (
        facts is not None
        and facts.get("schema") == TABLE_SCHEMA
        and facts.get("shard_xxh3_128") == index.xxh3_128
    )


def find_tables(
    source: str,
    shards: tuple[Shard, ...],
    indexes: tuple[IndexFacts, ...],
    *,
    index_dir: str | None,
    spec: TableSpec,
) -> tuple[TableFacts, ...]:
    """The facts of every shard's table, from the catalogs. Raises DataError when one is absent or
    was made for other content."""
    catalogs: dict[Path, dict[str, Any]] = {}
    found = []
    for shard, index in zip(shards, indexes, strict=True):
        folder = table_folder(index_folder(shard, index_dir), spec.key)
        if folder not in catalogs:
            catalogs[folder] = (read_catalog(folder) or {}).get("shards", {})
        facts = catalogs[folder].get(shard.name)
        if facts is None or not table_is_fresh(facts, index):
            state = "stale (the shard has changed)" if facts else "absent"
            raise DataError(
                f"source {source!r}: the token table of {shard} is {state}; looked in {folder} "
                f"for tokenizer, template, geometry and lengths of this run ({spec.as_json()}); "
                f"run: {PREPARE_COMMAND}"
            )
        found.append(TableFacts.from_json(facts))
    return tuple(found)


def open_table(shard: Shard, *, index_dir: str | None, spec: TableSpec) -> TableColumns:
    """Map the columns of a shard's table."""
    columns = read_columns(table_path(shard, index_dir, spec.key))
    return TableColumns(**{name: columns.numbers(name) for name in (*COLUMNS, "multimodal")})
