"""easy-VQA: 5,000 pictures of one coloured shape and 48,248 questions, with the package's own
split. What its two data sets share (easy_vqa_what.py, easy_vqa_yes_no.py).

The questions are written as LLaVA-style JSON and read back through ``datasets`` (llava_json.py),
the way any published instruction set would come in. Two sets, because they teach different things
and a mix must be able to weigh them: a lookup without eyes answers 67 % of the test questions, most
of them yes/no, while no "what" question can be answered without looking.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_recipes import llava_json, packages
from data_recipes.card import Card, Count
from data_recipes.split import Split, mixed_order
from vltrain.batch import RecordKind
from vltrain.data.writer import ShardRecord

VERSION = "easy-vqa 1.0"
LICENCE = "MIT"

Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """key: of the record. image: number of the picture. turns: (question, answer) pairs."""

    key: str
    image: int
    turns: list[Pair]


def card_of(name: str, *, expected: dict[Split, Count]) -> Card:
    """The card of one of the two sets."""
    return Card(
        name=name,
        source="easy-VQA by Victor Zhou; pictures, questions and split as packaged",
        version=VERSION,
        licence=LICENCE,
        kind=RecordKind.conversation,
        synthetic=False,
        expected=expected,
    )


def questions_by_image(split: Split) -> dict[int, list[Pair]]:
    """Image number -> its (question, answer) pairs, in the package's order."""
    package = packages.load("easy_vqa")
    read = package.get_train_questions if split is Split.train else package.get_test_questions
    groups: dict[int, list[Pair]] = {}
    for question, answer, image in zip(*read(), strict=True):
        groups.setdefault(image, []).append((question, answer))
    return groups


def mixed_questions(image: int, pairs: list[Pair]) -> list[Pair]:
    """``pairs`` in an order of their own for each picture, the same on every machine."""
    return random.Random(f"easy-vqa-{image}").sample(pairs, len(pairs))


def image_paths(split: Split) -> dict[int, Path]:
    package = packages.load("easy_vqa")
    read = package.get_train_image_paths if split is Split.train else package.get_test_image_paths
    return {image: Path(path) for image, path in read().items()}


def is_what(question: str) -> bool:
    return question.lower().startswith("what")


def single_questions(split: Split, *, prefix: str, what: bool) -> Iterator[Conversation]:
    """One question per conversation: how held-out questions are asked."""
    for image, pairs in sorted(questions_by_image(split).items()):
        for number, pair in enumerate(pairs):
            if is_what(pair[0]) == what:
                yield Conversation(
                    key=f"{prefix}{image:04d}-{number:02d}", image=image, turns=[pair]
                )


def records(
    conversations: Iterable[Conversation], *, split: Split, limit: int | None
) -> Iterator[ShardRecord]:
    """The conversations as records, in mixed order."""
    paths = image_paths(split)
    with tempfile.TemporaryDirectory(prefix="easy-vqa-") as folder:
        file = Path(folder) / "questions.jsonl"
        with file.open("w", encoding="utf-8") as stream:
            for one in sorted(conversations, key=lambda c: mixed_order(c.key)):
                stream.write(json.dumps(_llava_row(one, image=paths[one.image].name)) + "\n")
        image_folder = next(iter(paths.values())).parent
        yield from llava_json.records([file], image_folder=image_folder, limit=limit)


def _llava_row(conversation: Conversation, *, image: str) -> dict[str, object]:
    said = []
    for number, (question, answer) in enumerate(conversation.turns):
        mark = "<image>\n" if number == 0 else ""
        said.append({"from": "human", "value": mark + question})
        said.append({"from": "gpt", "value": answer})
    return {"id": conversation.key, "image": image, "conversations": said}
