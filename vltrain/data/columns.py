"""Small files beside the shards: columns (Arrow IPC, read as numpy views) and JSON catalogs.

In: named columns and JSON-able facts. Out: one file each, written aside and renamed, so that a
file is whole or absent. Reading maps the file: numbers are views on the page cache, shared by all
processes of a machine, and opening costs no pass over the data. Rejected: .npz (copies), SQLite
(rows, not columns).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vltrain.data.layout import CATALOG_NAME, PREPARE_COMMAND
from vltrain.errors import DataError

_FACTS = b"vltrain"


@dataclass(frozen=True, slots=True)
class ColumnFile:
    """An opened column file: ``facts`` as written, columns by name."""

    facts: dict[str, Any]
    table: pa.Table

    def array(self, name: str) -> Any:
        """The Arrow array of a column (files are written as one batch)."""
        column = self.table.column(name)
        return column.chunk(0) if column.num_chunks else pa.array([], column.type)

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers as a read-only view."""
        return self.array(name).to_numpy(zero_copy_only=True)


def write_columns(path: Path, columns: Mapping[str, Any], *, facts: Mapping[str, Any]) -> None:
    """Write columns (arrays of equal length) and facts as one file, atomically."""
    table = pa.table(dict(columns))
    table = table.replace_schema_metadata({_FACTS: json.dumps(facts, ensure_ascii=False)})
    with (
        _replacing(path) as aside,
        pa.OSFile(str(aside), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=max(1, table.num_rows))


def read_facts(path: Path) -> dict[str, Any] | None:
    """The facts of a column file, or None where there is no such file."""
    if not path.is_file():
        return None
    return read_columns(path).facts


def read_columns(path: Path) -> ColumnFile:
    """Map a column file. Raises DataError when it is absent or damaged."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        facts = json.loads((table.schema.metadata or {})[_FACTS])
    except FileNotFoundError:
        raise DataError(f"{path} is missing; run: {PREPARE_COMMAND}") from None
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        raise DataError(
            f"{path} is damaged ({error}); delete it and run: {PREPARE_COMMAND}"
        ) from error
    return ColumnFile(facts, table)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    with _replacing(path) as aside:
        text = json.dumps(content, ensure_ascii=False, indent=1)
        aside.write_text(text + "\n", encoding="utf-8")


def read_catalog(folder: Path) -> dict[str, Any] | None:
    """``catalog.json`` of an index or table folder, or None. Raises DataError when damaged."""
    path = folder / CATALOG_NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not isinstance(found.get("shards"), dict):
            raise ValueError("it names no shards")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(
            f"{path} is damaged ({error}); delete it and run: {PREPARE_COMMAND}"
        ) from error
    return found


def extend_catalog(
    folder: Path,
    *,
    header: Mapping[str, Any],
    shards: Mapping[str, Mapping[str, Any]],
    gone: Collection[str] = (),
) -> None:
    """Put shards into a folder's catalog, keeping the others there but for ``gone``; one writer at
    a time.

    A catalog of another ``schema`` is begun anew.
    """
    lock_path = folder / ".lock"
    with _writable(lock_path):
        lock = lock_path.open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        present = read_catalog(folder)
        if present is None or present.get("schema") != header["schema"]:
            present = {"shards": {}}
        kept = {name: facts for name, facts in present["shards"].items() if name not in gone}
        merged = dict(sorted({**kept, **shards}.items()))
        write_json(folder / CATALOG_NAME, {**header, "shards": merged})


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    """Its folder made. Raises DataError where the system lets nothing be written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {path} ({error.strerror}); set index_dir of this source to a folder "
            f"that can be written, with room"
        ) from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    aside = path.parent / f".{path.name}.{os.getpid()}"
    with _writable(path):
        try:
            yield aside
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
