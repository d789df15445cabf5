"""easy-VQA: the package's split, dealt conversations, single held-out questions, captions."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from data_recipes import easy_vqa, shapes_caption
from data_recipes.split import Split
from vltrain.data.writer import ShardRecord


def messages(record: ShardRecord) -> list[dict[str, Any]]:
    document = record.members["json"]
    assert isinstance(document, dict)
    return document["messages"]


@pytest.fixture(scope="module")
def train() -> list[ShardRecord]:
    return list(easy_vqa.samples(Split.train))


@pytest.fixture(scope="module")
def held_out() -> list[ShardRecord]:
    return list(easy_vqa.samples(Split.held_out))


def test_counts(train: list[ShardRecord], held_out: list[ShardRecord]) -> None:
    easy_vqa.card().check(Split.train, len(train))
    easy_vqa.card().check(Split.held_out, len(held_out))
    assert sum(len(messages(r)) // 2 for r in train) == 38575  # no question is lost
    assert len({r.members["0.png"] for r in train}) == 4000
    assert len({r.members["0.png"] for r in held_out}) == 1000


def test_no_picture_is_on_both_sides(train: list[ShardRecord], held_out: list[ShardRecord]) -> None:
    shapes = {r.members["png"] for r in shapes_caption.samples(Split.train)}
    pictures = {r.members["0.png"] for r in train} | shapes
    assert not pictures & {r.members["0.png"] for r in held_out}


def test_train_conversations_hold_every_question_of_their_picture_once(
    train: list[ShardRecord],
) -> None:
    hands = [r for r in train if r.key.startswith("train-0000-")]
    asked = Counter(
        m["content"].removeprefix("<image>\n")
        for hand in hands
        for m in messages(hand)
        if m["role"] == "user"
    )
    assert asked == Counter(q for q, _ in easy_vqa.questions_by_image(Split.train)[0])
    for record in train:
        turns = messages(record)
        assert 2 <= len(turns) <= 8
        assert [m["role"] for m in turns] == ["user", "assistant"] * (len(turns) // 2)
        assert [m["content"].count("<image>") for m in turns] == [1] + [0] * (len(turns) - 1)
    first = [messages(r)[0]["content"].removeprefix("<image>\n") for r in train]
    assert 0.2 < sum(map(easy_vqa.is_what, first)) / len(first) < 0.35


def test_held_out_keys_tell_what_from_yes_no(held_out: list[ShardRecord]) -> None:
    for record in held_out:
        [question, answer] = messages(record)
        what = question["content"].startswith("<image>\nwhat")
        assert record.key.startswith("what-" if what else "is-")
        assert what != (answer["content"] in ("yes", "no"))
    assert sum(r.key.startswith("what-") for r in held_out) == 2537


def test_one_question_per_conversation_on_demand() -> None:
    records = list(easy_vqa.samples(Split.train, max_turns=1, limit=20))
    assert [len(messages(r)) for r in records] == [2] * 20


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([("what color is the shape?", "teal"), ("what is the teal shape?", "circle")],) * 1
        + (("teal", "circle"),),
        ([("is there a red shape?", "yes"), ("is there a circle?", "no")], ("red", None)),
        ([("is there not a triangle?", "no")], (None, "triangle")),
        ([("is no blue shape present?", "yes")], (None, None)),
    ],
)
def test_facts(pairs: list[tuple[str, str]], expected: tuple[str | None, str | None]) -> None:
    assert shapes_caption.facts(pairs) == expected


def test_captions_name_colour_and_shape() -> None:
    records = list(shapes_caption.samples(Split.train))
    shapes_caption.card().check(Split.train, len(records))
    words = [str(record.members["txt"]).split() for record in records]
    assert sum(w[-1] in shapes_caption.SHAPES for w in words) == 3793
    assert sum(w[-2] in shapes_caption.COLORS for w in words) == 3710
    assert all(set(w) & {*shapes_caption.SHAPES, *shapes_caption.COLORS} for w in words)


def test_facts_never_contradict_each_other() -> None:
    """Every statement that the parser reads about a picture tells the same colour and shape."""
    for pairs in list(easy_vqa.questions_by_image(Split.train).values())[:500]:
        told = [shapes_caption.facts([pair]) for pair in pairs]
        assert len({color for color, _ in told if color}) <= 1
        assert len({shape for _, shape in told if shape}) <= 1
