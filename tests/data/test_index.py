from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import xxhash
from shard_makers import png, write_tar
from webdataset.compat import WebDataset

from vltrain.data.columns import read_facts, write_columns
from vltrain.data.config import KeyRule
from vltrain.data.index import Member, build_index, is_fresh, open_index
from vltrain.data.layout import index_path
from vltrain.data.shardfile import mapped, stamp_of
from vltrain.errors import DataError


def index_shard(shard: Path, *, index_dir: str | None) -> None:
    with mapped(shard, remote=None) as data:
        stamp = stamp_of(shard, remote=None)
        build_index(shard, data, stamp=stamp, index_dir=index_dir, keys=KeyRule.first_dot)


MEMBERS = [
    ("__meta__", b"x"),
    ("d/a.json", b"{}"),
    ("d/a.0.PNG", png(6, 4)),
    ("d/a.1.png", b"no image"),
    ("README", b"x"),
    ("b.txt", b"text"),
    ("c.txt", b"text"),
    ("b.txt", b"again"),
]


def indexed(path: Path):
    index_shard(path, index_dir=None)
    return open_index(path, index_dir=None, source="s")


def test_rows_by_hand(tmp_path: Path) -> None:
    index = indexed(write_tar(tmp_path / "s.tar", MEMBERS))
    assert [index.key(row) for row in range(len(index))] == ["d/a", "b", "c", "b"]
    assert index.members(1) == (Member("txt", 11 * 512, 4),)
    json_member, good, bad = index.members(0)
    assert (json_member.extension, json_member.offset, json_member.size) == ("json", 1536, 2)
    assert (good.extension, good.width, good.height, good.reason) == ("0.png", 6, 4, "")
    assert (bad.extension, bad.width, bad.reason) == ("1.png", 0, "not_an_image")
    facts = index.facts
    assert (facts.samples, facts.members, facts.ignored, facts.unreadable) == (4, 6, 2, 1)
    assert facts.bytes == (tmp_path / "s.tar").stat().st_size
    assert index.key_digests[1] == index.key_digests[3]
    assert index.content_digests[1] == index.content_digests[2] != index.content_digests[3]
    images, rows = index.image_digests(np.array([0, 3]))
    assert rows.tolist() == [0]
    assert images.tolist() == [xxhash.xxh3_64_intdigest(png(6, 4))]
    assert index.image_digests(np.array([1, 2]))[0].size == 0


def test_samples_are_those_of_stock_webdataset(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", MEMBERS)
    index, data = indexed(shard), shard.read_bytes()
    ours = [
        {
            "__key__": index.key(row),
            **{m.extension: data[m.offset : m.offset + m.size] for m in index.members(row)},
        }
        for row in range(len(index))
    ]
    stock = [
        {name: value for name, value in sample.items() if name not in ("__url__", "__local_path__")}
        for sample in WebDataset(str(shard), shardshuffle=False)
    ]
    assert ours == stock


def test_tars_without_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"s\.tar is an empty tar.*0 members"):
        index_shard(write_tar(tmp_path / "s.tar", []), index_dir=None)
    with pytest.raises(DataError, match=r"n\.tar is an empty tar.*1 members"):
        index_shard(write_tar(tmp_path / "n.tar", [("README", b"")]), index_dir=None)
    (tmp_path / "z.tar").touch()
    with pytest.raises(DataError, match=r"z\.tar is empty \(0 bytes\)"):
        index_shard(tmp_path / "z.tar", index_dir=None)


def test_index_of_another_state_is_refused(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", MEMBERS)
    with pytest.raises(DataError, match=r"'s': .*s\.tar has no index .*launch/prepare\.py"):
        open_index(shard, index_dir=None, source="s")
    indexed(shard)
    assert is_fresh(read_facts(index_path(shard, None)), stamp_of(shard, remote=None))
    stat = shard.stat()
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert not is_fresh(read_facts(index_path(shard, None)), stamp_of(shard, remote=None))
    with pytest.raises(DataError, match=r"index of .*s\.tar is stale.*launch/prepare\.py"):
        open_index(shard, index_dir=None, source="s")
    shard.unlink()
    with pytest.raises(DataError, match=r"shard .*s\.tar is gone"):
        open_index(shard, index_dir=None, source="s")


def test_index_of_another_schema_is_refused(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", MEMBERS)
    write_columns(index_path(shard, None), {"key": ["a"]}, facts={"schema": 0})
    with pytest.raises(DataError, match=r"has schema 0, this version reads 2.*prepare"):
        open_index(shard, index_dir=None, source="s")


def test_index_may_lie_elsewhere(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "data" / "s.tar", MEMBERS)
    index_shard(shard, index_dir=str(tmp_path / "index"))
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["s.tar"]
    assert len(open_index(shard, index_dir=str(tmp_path / "index"), source="s")) == 4
    assert json.dumps(read_facts(tmp_path / "index" / "s.tar.index.arrow"))
