from __future__ import annotations

import json
from pathlib import Path

import pytest
from shard_makers import png
from webdataset.compat import WebDataset

from vltrain.batch import RecordKind
from vltrain.data.writer import (
    ShardCard,
    ShardRecord,
    WrittenShards,
    caption_record,
    conversation_record,
    interleaved_record,
    text_record,
    write_shards,
)
from vltrain.errors import DataError


def card(expected: int | None = None) -> ShardCard:
    return ShardCard(
        name="demo",
        description="d",
        source="here",
        licence="CC0",
        expected_samples=expected,
    )


def write(directory: Path, texts: list[str], *, expected: int | None = None) -> WrittenShards:
    records = (
        caption_record(f"{i:03d}", image=png(i + 1), extension="png", text=text)
        for i, text in enumerate(texts)
    )
    return write_shards(
        records,
        directory,
        kind=RecordKind.caption,
        samples_per_shard=2,
        card=card(expected),
    )


def test_shards_and_card(tmp_path: Path) -> None:
    written = write(tmp_path / "a", ["x", "y", "z"], expected=3)
    assert [path.name for path in written.shards] == ["shard-000000.tar", "shard-000001.tar"]
    assert (written.samples, written.changed) == (3, True)
    found = json.loads((tmp_path / "a" / "card.json").read_text())
    assert (found["licence"], found["kind"], found["samples"]) == ("CC0", "caption", 3)
    assert [shard["samples"] for shard in found["shards"]] == [2, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_stock_webdataset_reads_what_was_written(tmp_path: Path) -> None:
    written = write(tmp_path / "a", ["x", "ü"])
    stock = list(WebDataset(str(written.shards[0]), shardshuffle=False))
    assert [(s["__key__"], s["txt"].decode(), s["png"]) for s in stock] == [
        ("000", "x", png(1)),
        ("001", "ü", png(2)),
    ]


def test_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", ["x"]), write(tmp_path / "b", ["x"])
    assert first.shards[0].read_bytes() == second.shards[0].read_bytes()


def test_same_bytes_are_left_alone_and_others_replaced(tmp_path: Path) -> None:
    shard = write(tmp_path / "a", ["x", "y", "z"]).shards[0]
    before = shard.stat().st_mtime_ns
    assert not write(tmp_path / "a", ["x", "y", "z"]).changed
    assert shard.stat().st_mtime_ns == before
    assert write(tmp_path / "a", ["x"]).changed
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "card.json",
        "shard-000000.tar",
    ]


def test_a_damaged_shard_is_written_again(tmp_path: Path) -> None:
    shard = write(tmp_path / "a", ["x"]).shards[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + b"x")
    assert write(tmp_path / "a", ["x"]).changed
    assert shard.read_bytes() == whole


def test_nothing_is_left_of_a_recipe_that_fails(tmp_path: Path) -> None:
    def failing():
        yield text_record("a", text="x")
        raise RuntimeError("raw data")

    with pytest.raises(RuntimeError, match="raw data"):
        write_shards(
            failing(), tmp_path / "a", kind=RecordKind.text, samples_per_shard=2, card=card()
        )
    assert list(tmp_path.iterdir()) == []


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"wrote 1 samples .* its card expects 2"):
        write(tmp_path / "a", ["x"], expected=2)
    with pytest.raises(DataError, match="no records for"):
        write(tmp_path / "a", [])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("precious")
    with pytest.raises(DataError, match=r"holds files but no card\.json"):
        write(tmp_path / "mine", ["x"])
    assert (tmp_path / "mine" / "file").read_text() == "precious"


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([text_record("a.b", text="x")], r"key 'a\.b' cannot be used"),
        ([text_record("a", text="x")] * 2, "key 'a' is used twice"),
        ([ShardRecord(key="a", members={"TXT": "x", "txt": "x"})], "expected txt, in lower case"),
        ([ShardRecord(key="a", members={"png": b"x"})], r"has members \['png'\]"),
    ],
)
def test_unusable_records_are_refused(
    tmp_path: Path, records: list[ShardRecord], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        write_shards(
            records, tmp_path / "a", kind=RecordKind.text, samples_per_shard=9, card=card()
        )


def test_records_of_documents_and_conversations() -> None:
    page = interleaved_record("k", content=["before", b"A", "between", b"B"])
    assert page.members["json"] == {
        "texts": ["before", None, "between", None],
        "images": [None, "0.png", None, "1.png"],
    }
    assert (page.members["0.png"], page.members["1.png"]) == (b"A", b"B")
    talk = conversation_record("k", messages=[("user", "<image>\nWhat?")], images=[b"A"])
    assert talk.members["json"] == {"messages": [{"role": "user", "content": "<image>\nWhat?"}]}
    with pytest.raises(DataError, match="1 <image> marks but 0 images"):
        conversation_record("k", messages=[("user", "<image>")])
    with pytest.raises(DataError, match=r"record 'k': .*role 'User' is none of"):
        conversation_record("k", messages=[("User", "Hi")])
