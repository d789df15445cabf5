"""Tars as other tools write them: what is proposed for each is what reads it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from shard_makers import Members, png, prepare, source_config, write_tar

from vltrain.batch import Modality, RecordKind
from vltrain.data.config import KeyRule, SourceConfig
from vltrain.data.propose import propose_source
from vltrain.errors import DataError


def js(content: object) -> bytes:
    return json.dumps(content).encode()


def ids(*numbers: int) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(numbers))
    return stream.getvalue()


def img2dataset(n: int) -> Members:
    meta = {"caption": "a dog", "url": "http://x/1.jpg", "status": "success", "key": str(n)}
    return [(f"0/{n}.JPG", png()), (f"0/{n}.txt", b"a dog"), (f"0/{n}.json", js(meta))]


def captions_in_json(n: int) -> Members:
    return [(f"{n}.png", png()), (f"{n}.json", js({"url": "http://x", "caption": "dog"}))]


def two_images(n: int) -> Members:
    return [(f"{n}.depth.png", png()), (f"{n}.rgb.png", png()), (f"{n}.cap", b"a dog")]


def llava(n: int) -> Members:
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
    return [(f"{n}.png", png()), (f"{n}.json", js({"image": "coco/1.jpg", "conversations": said}))]


def obelics(n: int) -> Members:
    body = {"texts": [None, "a dog"], "images": [f"http://x/{n}.png", None], "metadata": "{}"}
    return [(f"{n}.json", js(body)), (f"{n}.0.png", png())]


def mmc4(n: int) -> Members:
    info = [{"image_name": "x.png", "matched_text_index": 0}]
    return [(f"{n}.json", js({"text_list": ["a dog"], "image_info": info})), (f"{n}.x.png", png())]


def texts(n: int) -> Members:
    return [(f"{n}.txt", b"a dog")]


def texts_in_json(n: int) -> Members:
    return [(f"{n}.json", js({"id": "7", "text": "a dog", "source": "web page"}))]


def token_arrays(n: int) -> Members:
    return [(f"{n}.input_ids.npy", ids(9, 10, 11))]


def tokens_in_json(n: int) -> Members:
    return [(f"{n}.json", js({"length": 3, "input_ids": [9, 10, 11]}))]


def dotted(n: int) -> Members:
    return [(f"photo.v1.{n}.jpg", png()), (f"photo.v1.{n}.txt", b"a dog")]


def dotted_numbered(n: int) -> Members:
    body = {"texts": [None, "a dog"], "images": ["0.png", None]}
    return [(f"page.v{n}.json", js(body)), (f"page.v{n}.0.png", png())]


CASES = [
    (img2dataset, "caption", "multimodal", {}, "first_dot"),
    (captions_in_json, "caption", "multimodal", {"text": "json:caption"}, "first_dot"),
    (two_images, "caption", "multimodal", {"image": "depth.png", "text": "cap"}, "first_dot"),
    (llava, "conversation", "multimodal", {}, "first_dot"),
    (obelics, "interleaved", "multimodal", {}, "first_dot"),
    (mmc4, "interleaved", "multimodal", {}, "first_dot"),
    (texts, "text", "language", {}, "first_dot"),
    (texts_in_json, "text", "language", {"text": "json:text"}, "first_dot"),
    (token_arrays, "text", "language", {"tokens": "input_ids.npy"}, "first_dot"),
    (tokens_in_json, "text", "language", {"tokens": "json:input_ids"}, "first_dot"),
    (dotted, "caption", "multimodal", {}, "last_dot"),
    (dotted_numbered, "interleaved", "multimodal", {}, "image_number"),
]


@pytest.mark.parametrize(
    ("members", "kind", "modality", "fields", "keys"), CASES, ids=[c[0].__name__ for c in CASES]
)
def test_what_is_proposed_prepares_all(
    tmp_path: Path, members, kind: str, modality: str, fields: dict[str, str], keys: str
) -> None:
    write_tar(tmp_path / "a.tar", [member for n in range(5) for member in members(n)])
    proposal = propose_source([tmp_path / "a.tar"])
    assert proposal is not None
    assert (proposal.fits, proposal.looked_at) == (5, 5)
    written = yaml.safe_load(proposal.yaml(name="s", path=str(tmp_path)))
    expected = {"path": str(tmp_path), "kind": kind, "modality": modality}
    expected |= {"fields": fields} if fields else {}
    expected |= {"keys": keys} if keys != "first_dot" else {}
    assert written == {"s": expected}
    config = SourceConfig(
        path=str(tmp_path),
        kind=RecordKind(kind),
        modality=Modality(modality),
        fields=fields,
        keys=KeyRule(keys),
    )
    (report,) = prepare({"s": config}).sources
    assert report.totals[modality]["samples"] == 5
    assert report.excluded == {}


def test_both_modalities_are_two_sources(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A dog."}]
    records = [*llava(0), *llava(1), ("2.json", js({"messages": said}))]
    write_tar(tmp_path / "a.tar", records)
    proposal = propose_source([tmp_path / "a.tar"])
    assert proposal is not None
    written = yaml.safe_load(proposal.yaml(name="s", path="x"))
    assert {name: s["modality"] for name, s in written.items()} == {
        "s": "multimodal",
        "s_language": "language",
    }


def test_some_damage_changes_nothing(tmp_path: Path) -> None:
    records = [member for n in range(9) for member in img2dataset(n)]
    records += [("x.jpg", b"no image"), ("x.txt", b"dog"), ("y.json", b"{")]
    write_tar(tmp_path / "a.tar", records)
    proposal = propose_source([tmp_path / "a.tar"])
    assert proposal is not None
    assert (proposal.kind, proposal.fits, proposal.looked_at) == (RecordKind.caption, 9, 11)


def test_nothing_fits(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.json", b'{"n": 1}'), ("b.wav", b"\xff\xfe")])
    assert propose_source([tmp_path / "a.tar"]) is None
    (tmp_path / "b.tar").write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        propose_source([tmp_path / "b.tar"])


@pytest.mark.parametrize(
    ("kind", "modality"),
    [(RecordKind.conversation, Modality.multimodal), (RecordKind.caption, Modality.language)],
)
def test_prepare_proposes_where_the_config_does_not_fit(
    tmp_path: Path, kind: RecordKind, modality: Modality
) -> None:
    write_tar(tmp_path / "a.tar", [member for n in range(4) for member in img2dataset(n)])
    with pytest.raises(DataError) as caught:
        prepare({"s": source_config(tmp_path, kind=kind, modality=modality)})
    message = str(caught.value)
    assert f"with kind={kind.value}, modality={modality.value}" in message
    assert "it draws 0 of 4 records" in message
    lines = message.partition("of the data config:\n")[2]
    assert yaml.safe_load(lines) == {
        "s": {"path": str(tmp_path), "kind": "caption", "modality": "multimodal"}
    }


def test_one_index_has_one_rule_of_keys(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", texts(0))
    first = source_config(tmp_path, kind=RecordKind.text, modality=Modality.language)
    last = SourceConfig(**{**vars(first), "keys": KeyRule.last_dot})
    with pytest.raises(DataError, match=r"keys=first_dot and keys=last_dot\); give them one rule"):
        prepare({"one": first, "two": last})
