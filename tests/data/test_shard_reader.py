from __future__ import annotations

from pathlib import Path

import pytest
from shard_makers import png, prepare, source_config, write_tar

from vltrain.data.reader import ShardReader
from vltrain.data.sources import open_source
from vltrain.errors import DataError


def test_a_record_in_one_read(tmp_path: Path) -> None:
    members = [("a.png", png()), ("a.txt", b"a dog"), ("b.PNG", png(9)), ("b.txt", b"a cat")]
    write_tar(tmp_path / "s.tar", [*members, ("b.json", b"{}")])
    config = source_config(tmp_path)
    prepare({"s": config})
    source = open_source("s", config)
    reader = ShardReader(source)
    record = reader.read_record(0, 1)
    assert {name: bytes(data) for name, data in record.items()} == {
        "png": png(9),
        "txt": b"a cat",
        "json": b"{}",
    }
    for member in source.index(0).members(1):
        assert reader.read(0, member) == record[member.extension]

    data = (tmp_path / "s.tar").read_bytes()
    with (tmp_path / "s.tar").open("r+b") as stream:
        stream.truncate(len(data) // 4)
    with pytest.raises(DataError, match=r"s\.tar ended while it was read"):
        reader.read_record(0, 1)
