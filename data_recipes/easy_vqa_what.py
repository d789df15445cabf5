"""easy-VQA's "what" questions: the colour and the shape of the one figure in the picture.

Train: a conversation asks for the colour once and for the shape once, so that no answer can be
copied from the turn before and each needs a look at the picture. A picture with three colour
questions gives three conversations. Held out: one question per record.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import zip_longest

from data_recipes import easy_vqa
from data_recipes.card import Card, exactly
from data_recipes.easy_vqa import Conversation
from data_recipes.split import Split
from vltrain.data.writer import ShardRecord

PREFIX = "what-"


def card() -> Card:
    return easy_vqa.card_of(
        "easy_vqa_what", expected={Split.train: exactly(7095), Split.held_out: exactly(2537)}
    )


def samples(split: Split, *, limit: int | None = None) -> Iterator[ShardRecord]:
    rows = (
        _colour_and_shape()
        if split is Split.train
        else easy_vqa.single_questions(split, prefix=PREFIX, what=True)
    )
    yield from easy_vqa.records(rows, split=split, limit=limit)


def _colour_and_shape() -> Iterator[Conversation]:
    for image, pairs in sorted(easy_vqa.questions_by_image(Split.train).items()):
        asked = [p for p in easy_vqa.mixed_questions(image, pairs) if easy_vqa.is_what(p[0])]
        colour = [pair for pair in asked if "color" in pair[0]]
        shape = [pair for pair in asked if "color" not in pair[0]]
        for number, both in enumerate(zip_longest(colour, shape)):
            key = f"{PREFIX}{image:04d}-{number}"
            turns = [pair for pair in both if pair is not None]
            random.Random(key).shuffle(turns)  # the colour is not always asked first
            yield Conversation(key=key, image=image, turns=turns)
