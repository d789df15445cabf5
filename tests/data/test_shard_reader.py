from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from shard_makers import png, prepare, source_config, write_tar

from vltrain.data.reader import ShardReader
from vltrain.data.sources import open_source
from vltrain.errors import DataError


def test_records_in_one_read_each(tmp_path: Path) -> None:
    members = [("a.png", png()), ("a.txt", b"a dog"), ("b.PNG", png(9)), ("b.txt", b"a cat")]
    write_tar(tmp_path / "s.tar", [*members, ("b.json", b"{}")])
    write_tar(tmp_path / "t.tar", [("c.png", png(5)), ("c.txt", b"a fox")])
    config = source_config(tmp_path)
    prepare({"s": config})
    source = open_source("s", config)
    reader = ShardReader(source)
    shards, rows = np.array([0, 1, 0, 0]), np.array([1, 0, 0, 1])
    found = list(reader.read_records(shards, rows))
    assert [key for key, _ in found] == ["b", "c", "a", "b"]
    contents = [{name: bytes(data) for name, data in record.items()} for _, record in found]
    b = {"png": png(9), "txt": b"a cat", "json": b"{}"}
    assert contents == [
        b,
        {"png": png(5), "txt": b"a fox"},
        {"png": png(), "txt": b"a dog"},
        b,
    ]
    for member in source.index(0).members(1):
        assert reader.read(0, member) == b[member.extension]

    data = (tmp_path / "s.tar").read_bytes()
    with (tmp_path / "s.tar").open("r+b") as stream:
        stream.truncate(len(data) // 4)
    records = reader.read_records(shards[1:], rows[1:])
    assert next(records)[0] == "c"
    with pytest.raises(DataError, match=r"s\.tar ended while it was read"):
        list(records)
