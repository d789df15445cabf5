from __future__ import annotations

import io
import json

import numpy as np
import pytest

from vltrain.batch import Origin, RecordKind, Role, Sample, Turn
from vltrain.data.index import Member
from vltrain.data.records import check_fields, parse_record
from vltrain.errors import ConfigError, RecordFault

ORIGIN = Origin(source="s", shard="x.tar", key="k")
Files = dict[str, object]


def parse(kind: RecordKind, files: Files, **fields: str) -> Sample:
    """Images are sizes (width, height) or a reason; JSON and text are what the member holds."""
    contents, members = {}, []
    for name, content in files.items():
        if isinstance(content, tuple):
            members.append(Member(name, 0, 0, *content))
        elif name.endswith(("png", "jpg")):
            members.append(Member(name, 0, 0, reason=str(content), detail="why"))
        else:
            contents[name] = content if isinstance(content, bytes) else json.dumps(content).encode()
            members.append(Member(name, 0, 0))
    return parse_record(
        members,
        origin=ORIGIN,
        kind=kind,
        fields=fields,
        read=lambda member: contents[member.extension],
    )


def document(*content: str | int) -> tuple[Turn, ...]:
    return (Turn(role=Role.document, content=content),)


def test_caption() -> None:
    sample = parse(RecordKind.caption, {"png": (6, 4), "txt": b" a dog\n", "json": {}})
    assert sample.turns == document(0, "a dog")
    (image,) = sample.images
    assert (image.member, image.data, image.width, image.height) == ("png", b"", 6, 4)


def test_caption_of_other_extensions() -> None:
    files: Files = {"a.jpg": (6, 4), "b.jpg": (1, 1), "cap": b"a dog"}
    sample = parse(RecordKind.caption, files, image="a.jpg", text="cap")
    assert (sample.turns, sample.images[0].member) == (document(0, "a dog"), "a.jpg")


def test_text_keeps_its_blanks_and_ignores_images() -> None:
    sample = parse(RecordKind.text, {"txt": b"\xef\xbb\xbf  a <image>\n", "png": (1, 1)})
    assert (sample.turns, sample.images) == (document("  a <image>\n"), ())


def test_interleaved() -> None:
    body = {"texts": ["a", None, "b", None, None], "images": [None, "1.png", None, "0.png", None]}
    sample = parse(RecordKind.interleaved, {"json": body, "0.png": (1, 2), "1.png": (3, 4)})
    assert sample.turns == document("a", 0, "b", 1)
    assert [image.member for image in sample.images] == ["1.png", "0.png"]


def test_conversation() -> None:
    body = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "<image>\nIs it like<image>?"},
            {"role": "assistant", "content": "Yes"},
        ]
    }
    files: Files = {"json": body, "10.png": (1, 1), "2.png": (2, 2)}
    sample = parse(RecordKind.conversation, files)
    assert sample.turns == (
        Turn(role=Role.system, content=("Be brief.",)),
        Turn(role=Role.user, content=(0, "\nIs it like", 1, "?")),
        Turn(role=Role.assistant, content=("Yes",)),
    )
    assert [image.member for image in sample.images] == ["2.png", "10.png"]


def test_llava_conversation() -> None:
    body = {"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A"}]}
    sample = parse(RecordKind.conversation, {"json": body, "jpg": (1, 1)})
    assert [turn.content for turn in sample.turns] == [(0,), ("A",)]
    assert [turn.role for turn in sample.turns] == [Role.user, Role.assistant]


def test_openai_conversation() -> None:
    """Its images are parts, so an <image> that somebody typed is a word."""
    parts = [
        {"type": "image_url", "image_url": {"url": "0.png"}},
        {"type": "text", "text": "What does <image> mean?"},
        {"type": "image"},
    ]
    body = {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": [{"type": "text", "text": "A mark."}]},
        ]
    }
    sample = parse(RecordKind.conversation, {"json": body, "0.png": (1, 1), "1.png": (2, 2)})
    assert sample.turns == (
        Turn(role=Role.system, content=("Be brief.",)),
        Turn(role=Role.user, content=(0, "What does <image> mean?", 1)),
        Turn(role=Role.assistant, content=("A mark.",)),
    )
    assert [image.member for image in sample.images] == ["0.png", "1.png"]


@pytest.mark.parametrize(
    ("kind", "files", "reason", "detail"),
    [
        ("caption", {"png": (1, 1)}, "missing_member", r"no .txt among \['png'\]"),
        ("caption", {"txt": b"a"}, "missing_member", r"one image, found \[\]"),
        ("caption", {"png": (1, 1), "jpg": (1, 1), "txt": b"a"}, "ambiguous", "found"),
        ("caption", {"png": "not_an_image", "txt": b"a"}, "not_an_image", ".png: why"),
        ("caption", {"png": "too_large", "txt": b"a"}, "too_large", ".png: why"),
        ("caption", {"png": (1, 1), "txt": b" \n"}, "empty", ".txt holds no text"),
        ("text", {"txt": b"\xff\xfe"}, "bad_text", "not UTF-8"),
        ("interleaved", {"json": b"{"}, "bad_json", "it starts with '{'"),
        ("interleaved", {"json": b"[" * 100000}, "bad_json", "recursion"),
        ("interleaved", {"json": []}, "bad_record", "a list, not an object"),
        ("interleaved", {"json": {"texts": ["a"]}}, "bad_record", "equal length"),
        ("interleaved", {"json": {"texts": [""], "images": [None]}}, "empty", "without text"),
        (
            "interleaved",
            {"json": {"texts": ["a"], "images": ["0.png"]}},
            "bad_record",
            "one of text and image",
        ),
        (
            "interleaved",
            {"json": {"texts": ["a", None], "images": [None, "0.png"]}},
            "missing_member",
            "no .0.png",
        ),
        (
            "interleaved",
            {"json": {"texts": ["a", None], "images": [None, "json"]}},
            "not_an_image",
            "no image extension",
        ),
        ("conversation", {"json": {}}, "bad_record", "needs a list 'messages'"),
        ("conversation", {"json": {"messages": ["hi"]}}, "bad_record", "a str, not an object"),
        ("conversation", {"json": {"messages": [{"role": "x"}]}}, "bad_record", "role 'x' is none"),
        (
            "conversation",
            {"json": {"messages": [{"role": "user"}]}},
            "bad_record",
            "content of a user message is no text",
        ),
        (
            "conversation",
            {"json": {"messages": [{"role": "user", "content": "<image>"}]}},
            "image_count",
            "1 <image> marks but 0 images",
        ),
        (
            "conversation",
            {"json": {"messages": [{"role": "user", "content": [{"type": "audio"}]}]}},
            "bad_record",
            "a part of a user message has type 'audio': expected text",
        ),
        (
            "conversation",
            {"json": {"messages": [{"role": "user", "content": [{"type": "text"}]}]}},
            "bad_record",
            "has type 'text': expected text \\(with text\\)",
        ),
        (
            "conversation",
            {"json": {"messages": [{"role": "user", "content": ["a"]}]}},
            "bad_record",
            "has type None",
        ),
        (
            "conversation",
            {"json": {"messages": [{"role": "user", "content": [{"type": "image"}]}]}},
            "image_count",
            "1 <image> marks but 0 images",
        ),
        (
            "conversation",
            {"json": {"messages": [{"role": "user", "content": "\ud800"}]}},
            "bad_text",
            "surrogate",
        ),
    ],
)
def test_faults(kind: str, files: Files, reason: str, detail: str) -> None:
    with pytest.raises(RecordFault, match=detail) as caught:
        parse(RecordKind(kind), files)
    assert caught.value.reason == reason


def test_two_members_of_one_name_are_a_fault() -> None:
    with pytest.raises(RecordFault, match="duplicate_member"):
        parse_record(
            [Member("txt", 0, 1), Member("txt", 9, 1)],
            origin=ORIGIN,
            kind=RecordKind.text,
            fields={},
            read=lambda member: b"",
        )


def test_unknown_fields_are_refused() -> None:
    check_fields("s", kind=RecordKind.caption, fields={"image": "jpg", "text": "cap"})
    with pytest.raises(ConfigError, match=r"source 's': fields \['txt'\] unknown.*'text'"):
        check_fields("s", kind=RecordKind.caption, fields={"txt": "cap"})


def test_text_inside_json() -> None:
    body = {"caption": "a dog", "info": {"long": "a brown dog"}, "n": 3, "none": " "}
    files: Files = {"jpg": (6, 4), "json": body}
    assert parse(RecordKind.caption, files, text="JSON:caption").turns == document(0, "a dog")
    found = parse(RecordKind.caption, files, text="json:info.long")
    assert found.turns == document(0, "a brown dog")
    for place, reason in (("n", "bad_record"), ("x", "bad_record"), ("none", "empty")):
        with pytest.raises(RecordFault) as caught:
            parse(RecordKind.caption, files, text=f"json:{place}")
        assert caught.value.reason == reason


def npy(numbers: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(numbers))
    return stream.getvalue()


def npz(numbers: object) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, np.asarray(numbers))
    return stream.getvalue()


def test_token_ids() -> None:
    files: Files = {"npy": npy([5, 6]), "json": {"input_ids": [7, 8, 9], "bad": [1.5], "none": []}}
    assert parse(RecordKind.text, files, tokens="npy").token_ids == (5, 6)
    assert parse(RecordKind.text, files, tokens="json:input_ids").token_ids == (7, 8, 9)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"no numpy file", "bad_tokens"),
        (npy([1, 2])[:90], "bad_tokens"),
        (npz([1, 2]), "bad_tokens"),
        (npy([1, 2]).replace(b"(2,)", b"(10000000000000000,)"), "bad_tokens"),
        (npy([1, 2]).replace(b"(2,)", b"(2,("), "bad_tokens"),
        (npy([1, 2]).replace(b"(2,)", b"(02)"), "bad_tokens"),
        (npy([1, 2]).replace(b"'shape'", b"b'shap'"), "bad_tokens"),
        (npy([[1, 2], [3, 4]]), "bad_tokens"),
        (npy([1.0, 2.0]), "bad_tokens"),
        (npy([-1]), "bad_tokens"),
        (npy(np.zeros(0, dtype=np.int64)), "empty"),
    ],
)
def test_token_ids_that_are_none(data: bytes, reason: str) -> None:
    with pytest.raises(RecordFault) as caught:
        parse(RecordKind.text, {"npy": data}, tokens="npy")
    assert caught.value.reason == reason


def test_urls_and_paths_stand_for_the_members_in_order() -> None:
    body = {"texts": [None, "a", None], "images": ["http://x/b.jpg", None, "http://x/a.jpg"]}
    sample = parse(RecordKind.interleaved, {"json": body, "0.png": (1, 1), "1.png": (2, 2)})
    assert [image.member for image in sample.images] == ["0.png", "1.png"]
    paths = {**body, "images": ["a/1.PNG", None, "b/0.png"]}
    sample = parse(RecordKind.interleaved, {"json": paths, "0.png": (1, 1), "1.png": (2, 2)})
    assert [image.member for image in sample.images] == ["1.png", "0.png"]
    with pytest.raises(RecordFault, match="2 images are named but 1 are members") as caught:
        parse(RecordKind.interleaved, {"json": body, "0.png": (1, 1)})
    assert caught.value.reason == "image_count"


def test_llava_with_the_path_of_its_image() -> None:
    body = {
        "id": "1",
        "image": "coco/1.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": "A dog."},
        ],
    }
    sample = parse(RecordKind.conversation, {"jpg": (1, 1), "json": body})
    assert sample.turns[0].content == (0, "\nWhat?")
    assert [image.member for image in sample.images] == ["jpg"]


def test_mmc4() -> None:
    info = [
        {"image_name": "b.jpg", "matched_text_index": 1, "matched_sim": 0.3},
        {"image_name": "a.jpg", "matched_text_index": 0},
        {"image_name": "c.jpg", "matched_text_index": 1},
    ]
    body = {"text_list": ["One.", "Two."], "image_info": info, "url": "http://x"}
    files: Files = {"json": body, "a.jpg": (1, 1), "b.jpg": (2, 2), "c.jpg": (3, 3)}
    sample = parse(RecordKind.interleaved, files)
    assert sample.turns == document(0, "One. ", 1, 2, "Two.")
    assert [image.member for image in sample.images] == ["a.jpg", "b.jpg", "c.jpg"]


@pytest.mark.parametrize(
    "body",
    [
        {"text_list": "One."},
        {"text_list": ["One."], "image_info": None},
        {"text_list": ["One."], "image_info": [{"image_name": "a.jpg"}]},
        {"text_list": ["One."], "image_info": [{"image_name": "a", "matched_text_index": 1}]},
    ],
)
def test_mmc4_that_is_none(body: dict) -> None:
    with pytest.raises(RecordFault) as caught:
        parse(RecordKind.interleaved, {"json": body, "a.jpg": (1, 1)})
    assert caught.value.reason == "bad_record"


def test_fields_of_kinds() -> None:
    with pytest.raises(ConfigError, match="only text and tokens can be a value inside"):
        check_fields("s", kind=RecordKind.caption, fields={"image": "json:image"})
    with pytest.raises(ConfigError, match="fields names text and tokens"):
        check_fields("s", kind=RecordKind.text, fields={"text": "txt", "tokens": "npy"})
    check_fields("s", kind=RecordKind.text, fields={"tokens": "json:ids"})
