from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vltrain.data.columns import (
    extend_catalog,
    read_catalog,
    read_columns,
    read_facts,
    write_columns,
)
from vltrain.errors import DataError


def test_columns_come_back_as_views(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.arrow"
    write_columns(path, {"a": np.arange(3, dtype=np.int32)}, facts={"n": 3})
    opened = read_columns(path)
    assert opened.facts == read_facts(path) == {"n": 3}
    numbers = opened.numbers("a")
    assert numbers.tolist() == [0, 1, 2]
    assert not numbers.flags.owndata
    assert [p.name for p in path.parent.iterdir()] == ["x.arrow"]


def test_columns_without_rows(tmp_path: Path) -> None:
    write_columns(tmp_path / "x", {"a": np.zeros(0, dtype=np.int32)}, facts={})
    assert read_columns(tmp_path / "x").numbers("a").tolist() == []


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    assert read_facts(path) is None
    with pytest.raises(DataError, match=r"x\.arrow is missing; run: python launch/prepare\.py"):
        read_columns(path)
    write_columns(path, {"a": np.arange(3)}, facts={})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"x\.arrow is damaged .*delete it and run"):
        read_columns(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"x\.arrow is damaged"):
        read_columns(path)
    for text in ("{", "[]", "{}", '{"schema": 1, "shards": []}'):
        (tmp_path / "catalog.json").write_text(text)
        with pytest.raises(DataError, match=r"catalog\.json is damaged"):
            read_catalog(tmp_path)


def test_catalogs_grow_and_begin_anew_with_another_schema(tmp_path: Path) -> None:
    assert read_catalog(tmp_path) is None
    extend_catalog(tmp_path, header={"schema": 1}, shards={"b": {"n": 1}})
    extend_catalog(tmp_path, header={"schema": 1}, shards={"a": {"n": 2}, "b": {"n": 3}})
    assert read_catalog(tmp_path) == {"schema": 1, "shards": {"a": {"n": 2}, "b": {"n": 3}}}
    extend_catalog(tmp_path, header={"schema": 2}, shards={"c": {}})
    assert read_catalog(tmp_path) == {"schema": 2, "shards": {"c": {}}}


def test_a_folder_that_cannot_be_written_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write .*file/index.*set index_dir"):
        write_columns(tmp_path / "file" / "index" / "x", {"a": np.arange(3)}, facts={})
    for name in ("x", ".lock"):
        (tmp_path / name / "in the way").mkdir(parents=True)
    with pytest.raises(DataError, match=r"cannot write .*/x \(.*set index_dir"):
        write_columns(tmp_path / "x", {"a": np.arange(3)}, facts={})
    with pytest.raises(DataError, match=r"cannot write .*/\.lock \(.*set index_dir"):
        extend_catalog(tmp_path, header={"schema": 1}, shards={})
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "file", "x"]
