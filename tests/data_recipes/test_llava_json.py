"""LLaVA-style JSON through ``datasets``, from local files and without a network."""

from __future__ import annotations

import io
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_recipes import llava_json
from vltrain.errors import DataError


def row(key: str, *, image: Any, question: str, answer: str = "red") -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": key, "image": image, "conversations": turns}


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    data = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(data, "PNG")
    (folder / "a.png").write_bytes(data.getvalue())
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return file


def test_rows_become_records_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    rows = [
        row("x/1.png", image="a.png", question="<image>\nWhat color?"),
        row("two", image=None, question="Only text?", answer="yes"),
        row("three", image="a.png", question="<image>\nAgain?"),
    ]
    file = write(tmp_path, rows)
    records = list(llava_json.records([file], image_folder=tmp_path, limit=2))
    assert [r.key for r in records] == ["x-1-png", "two"]
    assert records[0].members["0.png"] == (tmp_path / "a.png").read_bytes()
    assert records[0].members["json"] == {
        "messages": [
            {"role": "user", "content": "<image>\nWhat color?"},
            {"role": "assistant", "content": "red"},
        ]
    }
    assert set(records[1].members) == {"json"}


def test_several_images(tmp_path: Path) -> None:
    rows = [row("pair", image=["a.png", "a.png"], question="<image>\n<image>\nSame?")]
    [record] = llava_json.records([write(tmp_path, rows)], image_folder=tmp_path)
    assert set(record.members) == {"json", "0.png", "1.png"}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (row("k", image="b.png", question="<image>\n?"), "b.png is not an image file"),
        (row("k", image="a.png", question="no mark"), "0 <image> marks but 1 images"),
        (row("k", image=None, question="<image> ?"), "1 <image> marks but 0 images"),
        ({"id": "k", "image": "a.png", "conversations": []}, "no 'conversations'"),
        (
            {"id": "k", "image": None, "conversations": [{"from": "bot", "value": "hi"}]},
            "speaker 'bot'; expected one of",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, bad: dict[str, Any], words: str) -> None:
    file = write(tmp_path, [bad])
    with pytest.raises(DataError, match=r"row 0 \(id 'k'\)") as error:
        list(llava_json.records([file], image_folder=tmp_path))
    assert words in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such LLaVA-style JSON file: .*none.json"):
        list(llava_json.records([tmp_path / "none.json"], image_folder=None))
