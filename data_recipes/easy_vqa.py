"""easy-VQA: 5,000 pictures of one coloured shape and 48,248 questions, with the package's own
split.

The questions are written as LLaVA-style JSON and read back through ``datasets`` (llava_json.py),
the way any published instruction set would come in.

Train: the questions of one picture are dealt into conversations of at most four turns, so that a
picture is encoded once for several answers. Not all ten in one: after a few turns the earlier
questions and answers tell colour and shape, and the later answers need no look at the picture.
Held out: one question per record; the key begins with ``what-`` for questions that begin with
"what" and with ``is-`` for yes/no questions, to be reported apart (a lookup without eyes answers
67 % of the test questions, most of them yes/no).
"""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

from data_recipes import llava_json, packages
from data_recipes.card import Card, exactly
from data_recipes.split import Split, mixed_order
from vltrain.batch import RecordKind
from vltrain.data.writer import ShardRecord

VERSION = "easy-vqa 1.0"
LICENCE = "MIT"
MAX_TURNS = 4
WHAT_PREFIX, YES_NO_PREFIX = "what-", "is-"


def card() -> Card:
    return Card(
        name="easy_vqa",
        source="easy-VQA by Victor Zhou; pictures, questions and split as packaged",
        version=VERSION,
        licence=LICENCE,
        kind=RecordKind.conversation,
        synthetic=False,
        expected={Split.train: exactly(11121), Split.held_out: exactly(9673)},
        notes="key prefix of held-out records: what- or is- (yes/no)",
    )


def samples(
    split: Split, *, limit: int | None = None, max_turns: int = MAX_TURNS
) -> Iterator[ShardRecord]:
    """``max_turns``: questions in one train conversation (1: one question per record)."""
    groups = questions_by_image(split)
    rows = _hands(groups, max_turns=max_turns) if split is Split.train else _single(groups)
    paths = image_paths(split)
    with tempfile.TemporaryDirectory(prefix="easy-vqa-") as folder:
        file = Path(folder) / "questions.jsonl"
        with file.open("w", encoding="utf-8") as stream:
            for key, image, turns in sorted(rows, key=lambda row: mixed_order(row[0])):
                stream.write(json.dumps(_llava_row(key, paths[image].name, turns)) + "\n")
        image_folder = next(iter(paths.values())).parent
        yield from llava_json.records([file], image_folder=image_folder, limit=limit)


def questions_by_image(split: Split) -> dict[int, list[tuple[str, str]]]:
    """Image number -> its (question, answer) pairs, in the package's order."""
    package = packages.load("easy_vqa")
    read = package.get_train_questions if split is Split.train else package.get_test_questions
    groups: dict[int, list[tuple[str, str]]] = {}
    for question, answer, image in zip(*read(), strict=True):
        groups.setdefault(image, []).append((question, answer))
    return groups


def image_paths(split: Split) -> dict[int, Path]:
    package = packages.load("easy_vqa")
    read = package.get_train_image_paths if split is Split.train else package.get_test_image_paths
    return {image: Path(path) for image, path in read().items()}


def is_what(question: str) -> bool:
    return question.lower().startswith("what")


_Row = tuple[str, int, list[tuple[str, str]]]


def _hands(groups: dict[int, list[tuple[str, str]]], *, max_turns: int) -> Iterator[_Row]:
    """Deal every picture's questions, "what" questions first so that each hand gets its share of
    them, then shuffle each hand so that they are not always asked first."""
    for image, pairs in sorted(groups.items()):
        draw = random.Random(f"easy-vqa-{image}")
        order = draw.sample(pairs, len(pairs))
        order.sort(key=lambda pair: not is_what(pair[0]))
        number = math.ceil(len(pairs) / max_turns)
        for hand in range(number):
            turns = order[hand::number]
            draw.shuffle(turns)
            yield f"train-{image:04d}-{hand}", image, turns


def _single(groups: dict[int, list[tuple[str, str]]]) -> Iterator[_Row]:
    for image, pairs in sorted(groups.items()):
        for number, (question, answer) in enumerate(pairs):
            prefix = WHAT_PREFIX if is_what(question) else YES_NO_PREFIX
            yield f"{prefix}{image:04d}-{number:02d}", image, [(question, answer)]


def _llava_row(key: str, image: str, turns: list[tuple[str, str]]) -> dict[str, object]:
    conversations = []
    for number, (question, answer) in enumerate(turns):
        mark = "<image>\n" if number == 0 else ""
        conversations.append({"from": "human", "value": mark + question})
        conversations.append({"from": "gpt", "value": answer})
    return {"id": key, "image": image, "conversations": conversations}
