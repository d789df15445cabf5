"""LLaVA's, ShareGPT's and OpenAI's JSON through ``datasets``, from local files and without a
network."""

from __future__ import annotations

import base64
import io
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_recipes import llava_json
from vltrain.batch import Origin, RecordKind
from vltrain.data.index import Member
from vltrain.data.records import parse_record
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


def openai(*contents: Any, **fields: Any) -> dict[str, Any]:
    """A row whose user says ``contents[0]``, the assistant ``contents[1]``, and so on."""
    speakers = ("user", "assistant")
    said = [{"role": speakers[n % 2], "content": c} for n, c in enumerate(contents)]
    return {"id": "k", **fields, "messages": said}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def url(name: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": name}}


def pixel(colour: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (1, 1), colour).save(data, "PNG")
    return data.getvalue()


def test_openai_messages_in_all_their_forms_in_one_file(tmp_path: Path) -> None:
    """Contents that are text beside contents that are parts, names in the row and in the parts."""
    blue = pixel("blue")
    inline = "data:image/png;base64," + base64.b64encode(blue).decode()
    rows = [
        openai("<image>\nWhat color?", "red", images=["a.png"], id="marks"),
        openai([url("a.png"), text("and"), url(inline), text("Same <image>?")], "no", id="urls"),
        openai([{"type": "image"}, text("?")], [text("red")], images=["a.png"], id="parts"),
        openai([{"type": "image", "image": "a.png"}], "a", "more?", "b", id="own"),
        openai([url(inline), {"type": "image"}], "a", images=["a.png"], id="mixed"),
        openai("Only text?", "yes", id="text"),
        row("llava", image="a.png", question="<image>?"),
    ]
    file = write(tmp_path, rows)
    red = (tmp_path / "a.png").read_bytes()
    records = {r.key: r for r in llava_json.records([file], image_folder=tmp_path)}
    assert list(records) == ["marks", "urls", "parts", "own", "mixed", "text", "llava"]
    documents: dict[str, Any] = {key: record.members["json"] for key, record in records.items()}
    messages = {key: document["messages"] for key, document in documents.items()}
    images = {
        key: [data for name, data in sorted(record.members.items()) if name != "json"]
        for key, record in records.items()
    }
    assert messages["marks"] == [
        {"role": "user", "content": "<image>\nWhat color?"},
        {"role": "assistant", "content": "red"},
    ]
    image = {"type": "image"}
    assert messages["urls"][0]["content"] == [image, text("and"), image, text("Same <image>?")]
    assert messages["urls"][1]["content"] == "no"
    assert messages["parts"][0]["content"] == [image, text("?")]
    assert messages["parts"][1]["content"] == [text("red")]
    assert [m["role"] for m in messages["own"]] == ["user", "assistant", "user", "assistant"]
    assert messages["llava"] == [
        {"role": "user", "content": "<image>?"},
        {"role": "assistant", "content": "red"},
    ]
    assert images == {
        "marks": [red],
        "urls": [red, blue],
        "parts": [red],
        "own": [red],
        "mixed": [blue, red],
        "text": [],
        "llava": [red],
    }


def test_what_is_written_is_read_as_the_same_conversation(tmp_path: Path) -> None:
    """The recipe's members through the reader: what the row said, images in their places."""
    rows = [openai([text("a "), url("a.png"), text(" <image> b")], "c")]
    [record] = llava_json.records([write(tmp_path, rows)], image_folder=tmp_path)
    stored = {"json": json.dumps(record.members["json"]).encode()}
    sample = parse_record(
        [
            Member(extension="json", offset=0, size=1),
            Member(extension="0.png", offset=0, size=1, width=4, height=4),
        ],
        origin=Origin(source="s", shard="0.tar", key=record.key),
        kind=RecordKind.conversation,
        fields={},
        read=lambda member: stored[member.extension],
    )
    assert [turn.content for turn in sample.turns] == [("a ", 0, " <image> b"), ("c",)]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (row("k", image="b.png", question="<image>\n?"), "b.png is not an image file"),
        (row("k", image="a.png", question="no mark"), "0 <image> marks but 1 images"),
        (row("k", image=None, question="<image> ?"), "1 <image> marks but 0 images"),
        ({"id": "k", "image": "a.png", "conversations": []}, "no 'messages' and no"),
        (
            {"id": "k", "image": None, "conversations": [{"from": "bot", "value": "hi"}]},
            "speaker 'bot'; expected one of",
        ),
        (openai([url("a.png")], "b", images=["a.png"]), "0 <image> marks but 1 images"),
        (openai([{"type": "image"}], "b"), "1 <image> marks but 0 images"),
        (openai([url("https://example.org/a.png")], "b"), "org/a.png is no local image; fetch it"),
        (openai([url("data:text/plain;base64,YQ==")], "b"), "must hold base64 of an image"),
        (openai([url("data:image/png;base64,~")], "b"), "a data: URL that is no base64"),
        (openai([url("b.png")], "b"), "b.png is not an image file"),
        (openai([{"type": "audio"}], "b"), "user: a part of type 'audio'; expected text"),
        (openai("a", None), "assistant: the content is a NoneType; expected text or a list"),
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
