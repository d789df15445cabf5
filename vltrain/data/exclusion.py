"""Lists of records that a source leaves out: made from ledgers, honoured by ``prepare``.

In: ``ledger.jsonl`` of runs. Out: one file for each source, a row for each record; and, for a
source that names such a file, the keys by shard. A record is named by its shard's file name and its
key; where a shard holds a key twice, both are left out. The list's digest is part of the token
table's key, and through it of the recipe's digest. Costs one pass over the lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from vltrain.data.faults import LEDGER_SCHEMA
from vltrain.errors import DataError

LISTED = "listed"
"""The reason of records that are left out because a list names them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExclusionList:
    """keys: by shard name. digest: xxh3-64 hex over shard names and keys, in order; "" for no
    list."""

    keys: Mapping[str, frozenset[str]]
    digest: str

    def __len__(self) -> int:
        return sum(map(len, self.keys.values()))


def read_exclusions(path: str | None) -> ExclusionList:
    """The list that a source names (None: no list). Raises DataError for a file that is none."""
    if path is None:
        return ExclusionList(keys={}, digest="")
    keys: dict[str, set[str]] = {}
    for row in _rows(Path(path), what="exclusion list"):
        keys.setdefault(row["shard"], set()).add(row["key"])
    pairs = sorted((shard, key) for shard, found in keys.items() for key in found)
    return ExclusionList(
        keys={shard: frozenset(found) for shard, found in keys.items()},
        digest=xxhash.xxh3_64_hexdigest(json.dumps(pairs).encode()),
    )


def write_exclusions(ledgers: Sequence[Path], folder: Path) -> dict[str, tuple[Path, int]]:
    """One list for each source that the ledgers name: (file, records) by source. Records that an
    earlier list in the folder names stay on it: what is left out of a run never reaches its ledger.
    Raises DataError for a file that is no ledger, and where a list cannot be written.
    """
    listed: dict[str, dict[tuple[str, str], str]] = {}
    for ledger in ledgers:
        for row in _rows(ledger, what="ledger", schema=LEDGER_SCHEMA):
            place = (row["shard"], row["key"])
            listed.setdefault(row["source"], {}).setdefault(place, row["reason"])
    written = {}
    for source, records in sorted(listed.items()):
        path = folder / f"{source}.jsonl"
        if path.exists():
            for row in _rows(path, what="exclusion list"):
                records.setdefault((row["shard"], row["key"]), row["reason"])
        lines = [
            json.dumps({"shard": shard, "key": key, "reason": reason}, ensure_ascii=False) + "\n"
            for (shard, key), reason in sorted(records.items())
        ]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(lines), encoding="utf-8")
        except OSError as error:
            raise DataError(f"the exclusion list {path} cannot be written: {error}") from error
        written[source] = (path, len(records))
    return written


def _rows(path: Path, *, what: str, schema: int | None = None) -> Iterable[dict[str, Any]]:
    """The JSON objects of a file, one a line; a torn last line of a ledger is left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the {what} {path} cannot be read: {error}") from error
    texts = {"shard", "key", "reason"} | ({"source"} if schema is not None else set())
    needed = texts | ({"schema"} if schema is not None else set())
    # Not splitlines: a key may hold other separators, which JSON leaves as they are.
    *lines, last = text.split("\n")
    if schema is None and last:  # of a ledger, it is what a killed run left
        lines.append(last)
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if (
            not isinstance(row, dict)
            or not needed <= row.keys()
            or not all(isinstance(row[name], str) for name in texts)
        ):
            raise DataError(
                f"{path}:{number}: each row of this {what} is a JSON object with "
                f"{sorted(needed)} ({sorted(texts)} are texts); found {line.strip()[:60]!r}"
            )
        if schema is not None and row["schema"] != schema:
            raise DataError(
                f"{path}:{number}: row has schema {row['schema']}, this version reads {schema}"
            )
        yield row
