"""easy-VQA: the package's split, dealt conversations, single held-out questions, captions,
boxes."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import pytest
from PIL import Image, ImageDraw

from data_recipes import (
    easy_vqa,
    easy_vqa_boxes,
    easy_vqa_what,
    easy_vqa_yes_no,
    shapes_caption,
)
from data_recipes.split import Split
from vltrain.data.writer import ShardRecord


def messages(record: ShardRecord) -> list[dict[str, Any]]:
    document = record.members["json"]
    assert isinstance(document, dict)
    return document["messages"]


def questions(record: ShardRecord) -> list[str]:
    return [m["content"].removeprefix("<image>\n") for m in messages(record) if m["role"] == "user"]


@pytest.fixture(scope="module")
def what() -> dict[Split, list[ShardRecord]]:
    return {split: list(easy_vqa_what.samples(split)) for split in Split}


@pytest.fixture(scope="module")
def yes_no() -> dict[Split, list[ShardRecord]]:
    return {split: list(easy_vqa_yes_no.samples(split)) for split in Split}


def test_counts(
    what: dict[Split, list[ShardRecord]], yes_no: dict[Split, list[ShardRecord]]
) -> None:
    for split in Split:
        easy_vqa_what.card().check(split, len(what[split]))
        easy_vqa_yes_no.card().check(split, len(yes_no[split]))
    train = what[Split.train] + yes_no[Split.train]
    assert sum(len(messages(r)) // 2 for r in train) == 38575  # no question is lost
    assert len({r.members["0.png"] for r in train}) == 4000
    held_out = what[Split.held_out] + yes_no[Split.held_out]
    assert len({r.members["0.png"] for r in held_out}) == 1000


def test_no_picture_is_on_both_sides(
    what: dict[Split, list[ShardRecord]], yes_no: dict[Split, list[ShardRecord]]
) -> None:
    shapes = {r.members["png"] for r in shapes_caption.samples(Split.train)}
    seen = {r.members["0.png"] for r in what[Split.train] + yes_no[Split.train]} | shapes
    held_out = {r.members["0.png"] for r in what[Split.held_out] + yes_no[Split.held_out]}
    assert not seen & held_out


def test_every_train_question_is_asked_once(
    what: dict[Split, list[ShardRecord]], yes_no: dict[Split, list[ShardRecord]]
) -> None:
    of_first = [
        r
        for r in what[Split.train] + yes_no[Split.train]
        if r.key.removeprefix("what-").removeprefix("is-").startswith("0000-")
    ]
    asked = Counter(question for record in of_first for question in questions(record))
    assert asked == Counter(q for q, _ in easy_vqa.questions_by_image(Split.train)[0])


def test_train_conversations_take_turns(
    what: dict[Split, list[ShardRecord]], yes_no: dict[Split, list[ShardRecord]]
) -> None:
    for record in what[Split.train] + yes_no[Split.train]:
        turns = messages(record)
        assert 2 <= len(turns) <= 8
        assert [m["role"] for m in turns] == ["user", "assistant"] * (len(turns) // 2)
        assert [m["content"].count("<image>") for m in turns] == [1] + [0] * (len(turns) - 1)


def test_what_conversations_ask_for_colour_and_shape_at_most_once(
    what: dict[Split, list[ShardRecord]],
) -> None:
    orders: Counter[tuple[bool, ...]] = Counter()
    for record in what[Split.train]:
        colour = tuple("color" in question for question in questions(record))
        assert colour in ((True,), (False,), (True, False), (False, True))
        orders[colour] += 1
    both = orders[(True, False)] + orders[(False, True)]
    assert both == 3073
    assert 0.45 < orders[(True, False)] / both < 0.55  # neither is always asked first


def test_held_out_questions_are_single_and_of_their_kind(
    what: dict[Split, list[ShardRecord]], yes_no: dict[Split, list[ShardRecord]]
) -> None:
    for record in what[Split.held_out]:
        [question, answer] = messages(record)
        assert question["content"].startswith("<image>\nwhat")
        assert record.key.startswith("what-")
        assert answer["content"] in (*shapes_caption.COLORS, *shapes_caption.SHAPES)
    for record in yes_no[Split.held_out]:
        [question, answer] = messages(record)
        assert not question["content"].startswith("<image>\nwhat")
        assert record.key.startswith("is-")
        assert answer["content"] in ("yes", "no")


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


def test_boxes_of_every_picture() -> None:
    records = {split: list(easy_vqa_boxes.samples(split)) for split in Split}
    for split in Split:
        easy_vqa_boxes.card().check(split, len(records[split]))
    sides = [{r.members["0.png"] for r in found} for found in records.values()]
    assert not sides[0] & sides[1]
    keys = [r.key for found in records.values() for r in found]
    assert len(set(keys)) == 5000
    assert all(key.startswith("find-") for key in keys)
    names = Counter(messages(r)[0]["content"][2]["text"] for r in records[Split.train])
    assert names["the shape"] == 39  # the questions tell neither colour nor shape
    for found in records.values():
        for record in found:
            [left, top, right, bottom] = messages(record)[1]["content"][1]["boxes"][0]
            assert 9 <= right - left <= 34  # no figure is of another size
            assert 9 <= bottom - top <= 34


@pytest.mark.parametrize(
    ("number", "name", "box"),  # read off the pictures by hand
    [
        (0, "the red triangle", [1, 42, 14, 54]),
        (1, "the yellow rectangle", [0, 24, 17, 52]),  # it touches the picture's border
        (2, "the blue triangle", [39, 51, 51, 62]),
        (3, "the yellow circle", [19, 5, 45, 31]),
    ],
)
def test_boxes_of_held_out_pictures(number: int, name: str, box: list[int]) -> None:
    record = list(easy_vqa_boxes.samples(Split.held_out, limit=4))[number]
    assert record.key == f"find-held_out-000{number}"
    ref = {"type": "ref", "text": name}
    assert messages(record) == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\n"}, ref]},
        {"role": "assistant", "content": [ref, {"type": "boxes", "boxes": [box]}]},
    ]


def test_a_figure_in_a_corner_is_not_taken_for_the_background() -> None:
    picture = Image.new("RGB", (64, 64), (240, 240, 250))
    ImageDraw.Draw(picture).rectangle((0, 0, 29, 9), fill=(0, 0, 0))
    stored = io.BytesIO()
    picture.save(stored, "PNG")
    assert easy_vqa_boxes.figure_box(stored.getvalue()) == (0, 0, 30, 10)


def test_names_of_figures() -> None:
    assert easy_vqa_boxes.figure_name("teal", "circle") == "the teal circle"
    assert easy_vqa_boxes.figure_name("teal", None) == "the teal shape"
    assert easy_vqa_boxes.figure_name(None, "circle") == "the circle"
    assert easy_vqa_boxes.figure_name(None, None) == "the shape"
