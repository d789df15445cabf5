"""CPython's documentation as text and as conversations: nothing held out is in train."""

from __future__ import annotations

from typing import Any

import pytest

from data_recipes import stdlib_docs, stdlib_text, text_sft
from data_recipes.split import Split
from vltrain.data.writer import ShardRecord


def texts(split: Split) -> dict[str, str]:
    return {r.key: str(r.members["txt"]) for r in stdlib_text.samples(split)}


def messages(record: ShardRecord) -> list[dict[str, Any]]:
    document = record.members["json"]
    assert isinstance(document, dict)
    return document["messages"]


def test_counts_and_size() -> None:
    for split in Split:
        stdlib_text.card().check(split, len(texts(split)))
    train, held_out = (sum(map(len, texts(split).values())) for split in Split)
    assert 1_500_000 < train < 3_500_000
    assert 60_000 < held_out < 400_000


def test_no_held_out_paragraph_is_in_train() -> None:
    train = {p for t in texts(Split.train).values() for p in stdlib_docs.paragraphs_of(t)}
    held_out = {p for t in texts(Split.held_out).values() for p in stdlib_docs.paragraphs_of(t)}
    assert not {p for p in train & held_out if len(p) >= 60}
    assert not texts(Split.train).keys() & texts(Split.held_out).keys()


def test_source_and_c_docstrings_are_found_without_running_modules() -> None:
    docs = {d.name: d for d in stdlib_docs.docstrings()}
    dedent = docs["textwrap.dedent"]
    assert (dedent.what, dedent.signature, dedent.document) == (
        "function",
        "(text)",
        "module-textwrap",
    )
    assert docs["str.join"].what == "function"
    assert docs["json"].what == "module"
    assert docs["json.decoder.JSONDecoder"].what == "class"
    assert "topic-lambda" in texts(Split.train) | texts(Split.held_out)


def test_paragraphs_keep_indentation() -> None:
    assert stdlib_docs.paragraphs_of("  a\n  b  \n\n\n\tc\n   \nd") == [
        "  a\n  b",
        "        c",
        "d",
    ]


def test_sft_counts_and_shapes() -> None:
    for split in Split:
        records = list(text_sft.samples(split))
        text_sft.card().check(split, len(records))
        assert len({r.key for r in records}) == len(records)
        turns = [len(messages(r)) for r in records]
        assert set(turns) == {2, 4}
        assert 0.05 < turns.count(4) / len(turns) < 0.4
        assert all(set(r.members) == {"json"} for r in records)


def test_sft_answers_of_train_are_in_no_held_out_document() -> None:
    held_out = {
        " ".join(p.split())
        for t in texts(Split.held_out).values()
        for p in stdlib_docs.paragraphs_of(t)
    }
    for record in text_sft.samples(Split.train):
        assert not set(messages(record)[1]["content"].split("\n\n")) & held_out
    questions = [{messages(r)[0]["content"] for r in text_sft.samples(split)} for split in Split]
    assert not questions[0] & questions[1]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Return the length\nof a thing.\n\nMore words here.",) * 1
        + ("Return the length of a thing.\n\nMore words here.",),
        ("Return the length of a thing.\n\nFor example:\n\n>>> 1",) * 1
        + ("Return the length of a thing.",),
        ("Return the length of a thing.\n\n>>> size(1)",) * 1 + ("Return the length of a thing.",),
        ("title\n\nA module about something long.", "A module about something long."),
        ("Too short.", ""),
        (">>> only an example, but long enough", ""),
        ("x " * 300, ""),
    ],
)
def test_first_words(text: str, answer: str) -> None:
    assert text_sft.first_words(text) == answer


def test_limit() -> None:
    assert len(list(text_sft.samples(Split.train, limit=4))) == 4
    assert len(list(stdlib_text.samples(Split.held_out, limit=4))) == 4
