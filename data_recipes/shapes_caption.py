"""Caption pairs from easy-VQA's train pictures: the caption says what the questions' answers tell.

"What color is the shape?" answered "teal" and "is there a circle?" answered "yes" make "a teal
circle". Where the questions tell only one of the two, so does the caption; the 39 pictures whose
questions tell neither are left out. Train only: the test pictures are held out for questions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from data_recipes import easy_vqa
from data_recipes.card import Card, exactly
from data_recipes.split import Split, choose
from vltrain.batch import RecordKind
from vltrain.data.writer import ShardRecord, caption_record

COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")

_PHRASES = ("{}", "this is {}", "a picture of {}", "the image shows {}")
_NEGATED = re.compile(r"\b(not|no)\b")
_WORD = re.compile(r"[a-z]+")


def card() -> Card:
    return Card(
        name="shapes_caption",
        source="easy-VQA train pictures; captions by rule from the questions' answers",
        version=easy_vqa.VERSION,
        licence=easy_vqa.LICENCE,
        kind=RecordKind.caption,
        synthetic=False,
        expected={Split.train: exactly(3961)},
    )


def samples(split: Split, *, limit: int | None = None) -> Iterator[ShardRecord]:
    groups = easy_vqa.questions_by_image(split)
    paths = easy_vqa.image_paths(split)
    told = ((image, facts(pairs)) for image, pairs in sorted(groups.items()))
    wanted = ((image, known) for image, known in told if any(known))
    for image, (color, shape) in islice(wanted, limit):
        key = f"{split.value}-{image:04d}"
        phrase = choose(key, _PHRASES, purpose="phrase")
        caption = phrase.format(_describe(color, shape))
        yield caption_record(key, image=paths[image].read_bytes(), extension="png", text=caption)


def facts(pairs: list[tuple[str, str]]) -> tuple[str | None, str | None]:
    """(colour, shape) as far as the questions and answers about one picture tell them."""
    color = shape = None
    for question, answer in pairs:
        words = set(_WORD.findall(question))
        if easy_vqa.is_what(question):
            words.add(answer)
        elif (answer == "yes") == bool(_NEGATED.search(question)):
            continue  # "is there a red shape?" no; "is there not a red shape?" yes
        color = next((c for c in COLORS if c in words), color)
        shape = next((s for s in SHAPES if s in words), shape)
    return color, shape


def _describe(color: str | None, shape: str | None) -> str:
    return f"a {color} {shape or 'shape'}" if color else f"a {shape or 'shape'}"
