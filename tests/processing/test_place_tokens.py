from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from vltrain.errors import ConfigError
from vltrain.processing.place_tokens import place_tokens, released_ids
from vltrain.processing.tokens import TextTokenizer
from vltrain.processing.train_tokenizer import IMAGE_TOKEN

RELEASED = {
    "<image>": 128815,
    "<|ref|>": 128816,
    "<|/ref|>": 128817,
    "<|det|>": 128818,
    "<|/det|>": 128819,
    "<|grounding|>": 128820,
    "<|User|>": 128821,
    "<|Assistant|>": 128822,
}
LAST = 349
"""Id of the small tokenizer's last token."""


@pytest.fixture
def source(tokenizer_directory: Path, tmp_path: Path) -> Path:
    """The small tokenizer, its files to be changed."""
    (tmp_path / "source").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "source" / name).write_bytes((tokenizer_directory / name).read_bytes())
    return tmp_path / "source"


@pytest.fixture
def placed(source: Path, tmp_path: Path):
    """``placed({"<a>": 350}, vocab_size=400)``: the directory."""

    def place(ids: dict[str, int], *, vocab_size: int = 400) -> Path:
        return place_tokens(source, ids=ids, vocab_size=vocab_size, directory=tmp_path / "placed")

    return place


def document_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))


def test_only_tokens_are_added_and_they_are_contiguous(deepseek_directory):
    document = document_of(deepseek_directory)
    added = document["added_tokens"]
    assert [token["id"] for token in added] == list(range(100000, 100016))
    assert added[-1]["content"] == IMAGE_TOKEN
    assert len(document["model"]["vocab"]) == 100000


def test_transformers_gives_it_the_same_id(deepseek_directory):
    theirs = AutoTokenizer.from_pretrained(deepseek_directory)
    assert theirs.convert_tokens_to_ids(IMAGE_TOKEN) == 100015
    assert theirs.encode(f"{IMAGE_TOKEN}", add_special_tokens=False) == [100015]


def test_the_released_ids():
    assert released_ids(image_token="<image>", image_token_id=128815) == RELEASED


def test_all_of_vl2s_tokens_in_its_vocabulary(source, placed):
    """Behind the 128,815 tokens of a text model of its kind."""
    document = document_of(source)
    document["model"]["vocab"] |= {f"text{i}": i for i in range(LAST + 1, 128815)}
    (source / "tokenizer.json").write_text(json.dumps(document))
    directory = placed(RELEASED, vocab_size=129280)
    theirs = AutoTokenizer.from_pretrained(directory)
    text = "".join(RELEASED)
    assert theirs.encode(text, add_special_tokens=False) == list(RELEASED.values())
    ours = TextTokenizer.load(directory, image_token="<image>", image_token_id=128815)
    assert {s.value: i for s, i in ours.special_ids.items()} | {"<image>": 128815} == RELEASED
    assert ours.vocab_size == 128823
    assert not set(ours.encode(text)) & set(RELEASED.values())  # typed words stay words


def test_ids_of_ones_own_choice_in_any_order(placed, source):
    ids = {"<b>": 355, "<a>": 351, IMAGE_TOKEN: 3}  # the last is there
    directory = placed(ids, vocab_size=356)
    theirs = AutoTokenizer.from_pretrained(directory)
    assert theirs.convert_tokens_to_ids(list(ids)) == [355, 351, 3]
    assert theirs.convert_ids_to_tokens([350, 354]) == ["<|unused_350|>", "<|unused_354|>"]
    before, after = document_of(source)["added_tokens"], document_of(directory)["added_tokens"]
    assert after[: len(before)] == before
    assert [token["id"] for token in after[len(before) :]] == [350, 351, 352, 353, 354, 355]
    assert (directory / "tokenizer_config.json").read_bytes() == (
        source / "tokenizer_config.json"
    ).read_bytes()


def test_nothing_to_place_is_a_copy(placed, source):
    assert document_of(placed({IMAGE_TOKEN: 3}, vocab_size=350)) == document_of(source)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ({"<a>": 5}, rf"id 5, wanted for '<a>', is taken in .*first free id is {LAST + 1}"),
        ({"<a>": 1}, r"is taken in .* \('<｜end▁of▁sentence｜>'\)"),
        (
            {IMAGE_TOKEN: 360},
            "already has '<image_placeholder>', with id 3, and it is wanted at 360: .* cannot be "
            "moved; want it at 3",
        ),
        ({"<a>": 360, "<b>": 361, "<c>": 360}, "id 360 is wanted for <a>, <c>: give each an id"),
        (
            {"<a>": 398, "<b>": 399, "<c>": 400},
            r"<c> would lie beyond the embedding's last row, 399 \(model\.language\.vocab_size=400"
            r"\): choose ids from 350 on",
        ),
    ],
)
def test_ids_that_cannot_be_given(placed, tmp_path, ids, words):
    with pytest.raises(ConfigError, match=words):
        placed(ids)
    assert not (tmp_path / "placed").exists()


@pytest.mark.parametrize(("vocab_size", "room"), [(351, False), (352, True)])
def test_a_vocabulary_with_too_few_rows(placed, vocab_size, room):
    ids = {"<a>": 350, "<b>": 351}
    if room:
        placed(ids, vocab_size=vocab_size)
        return
    words = r"has ids up to 349 and the embedding 351 rows .*no room for 2 tokens"
    with pytest.raises(ConfigError, match=words):
        placed(ids, vocab_size=vocab_size)


def test_a_tokenizer_is_never_written_over(source):
    with pytest.raises(ConfigError, match=r"source has a tokenizer\.json already; give a new"):
        place_tokens(source, ids={"<a>": 350}, vocab_size=400, directory=source)


def test_a_directory_without_tokenizer(tmp_path):
    with pytest.raises(ConfigError, match=r"no tokenizer\.json in"):
        place_tokens(tmp_path, ids={"<a>": 350}, vocab_size=400, directory=tmp_path / "out")


def test_another_kind_of_tokenizer(placed, source):
    document = document_of(source)
    document["model"] = {"type": "Unigram", "vocab": [["a", 0.0]]}
    (source / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=r"tokenizer\.json is a Unigram: tokens are placed in"):
        placed({"<a>": 350})


def test_ids_with_gaps_before_them(placed, source):
    document = document_of(source)
    vocabulary = document["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    document["model"]["merges"] = [m for m in document["model"]["merges"] if "".join(m) != last]
    vocabulary[last] += 7
    (source / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=r"'<a>' would be read with id \d+, not 360: .*have gaps"):
        placed({"<a>": 360})
