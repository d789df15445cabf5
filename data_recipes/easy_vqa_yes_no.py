"""easy-VQA's yes/no questions ("does the image contain a yellow shape?").

Train: the questions of one picture are dealt into conversations of at most four turns, so that a
picture is encoded once for several answers. Not all in one: after a few turns the earlier questions
and answers tell colour and shape, and the later answers need no look at the picture. Held out: one
question per record.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from data_recipes import easy_vqa
from data_recipes.card import Card, exactly
from data_recipes.easy_vqa import Conversation
from data_recipes.split import Split
from vltrain.data.writer import ShardRecord

PREFIX = "is-"
_MAX_TURNS = 4


def card() -> Card:
    return easy_vqa.card_of(
        "easy_vqa_yes_no", expected={Split.train: exactly(8597), Split.held_out: exactly(7136)}
    )


def samples(split: Split, *, limit: int | None = None) -> Iterator[ShardRecord]:
    rows = (
        _dealt()
        if split is Split.train
        else easy_vqa.single_questions(split, prefix=PREFIX, what=False)
    )
    yield from easy_vqa.records(rows, split=split, limit=limit)


def _dealt() -> Iterator[Conversation]:
    for image, pairs in sorted(easy_vqa.questions_by_image(Split.train).items()):
        asked = [p for p in easy_vqa.mixed_questions(image, pairs) if not easy_vqa.is_what(p[0])]
        hands = math.ceil(len(asked) / _MAX_TURNS)
        for hand in range(hands):
            yield Conversation(
                key=f"{PREFIX}{image:04d}-{hand}", image=image, turns=asked[hand::hands]
            )
