"""Conversations about OpenMoji pictures: what kind of picture, and what it shows.

Train: one conversation per picture, two turns where the picture has a kind. Held out: one question
per record, key prefix ``kind-`` or ``name-``, so that they can be scored apart (naming a picture
never seen is beyond a small model; telling a flag from a face is not). Kinds are our own coarse
groups by Unicode code point (openmoji.py), not Unicode's emoji groups, which no installed package
carries.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from data_recipes import openmoji
from data_recipes.card import Card, exactly
from data_recipes.conversations import question_record
from data_recipes.split import Split
from vltrain.batch import RecordKind
from vltrain.data.writer import ShardRecord

KIND_QUESTION = "What kind of picture is this?"
NAME_QUESTION = "What is this?"


def card() -> Card:
    return Card(
        name="emoji_qa",
        source="OpenMoji colour pictures; names of the emoji package; questions by rule",
        version=openmoji.VERSION,
        licence=openmoji.LICENCE,
        kind=RecordKind.conversation,
        synthetic=False,
        expected={Split.train: exactly(1723), Split.held_out: exactly(290)},
        attribution=openmoji.ATTRIBUTION,
        notes="key prefix of held-out records: kind- or name-",
    )


def samples(split: Split, *, limit: int | None = None) -> Iterator[ShardRecord]:
    records = _train() if split is Split.train else _held_out()
    return islice(records, limit)


def _train() -> Iterator[ShardRecord]:
    for emoji in openmoji.emojis():
        if emoji.split is Split.train:
            turns = [(NAME_QUESTION, emoji.name)]
            if emoji.kind:
                turns.insert(0, (KIND_QUESTION, emoji.kind))
            yield question_record(emoji.code, turns=turns, images=[emoji.png])


def _held_out() -> Iterator[ShardRecord]:
    for emoji in openmoji.emojis():
        if emoji.split is not Split.held_out:
            continue
        if emoji.kind:
            yield question_record(
                f"kind-{emoji.code}", turns=[(KIND_QUESTION, emoji.kind)], images=[emoji.png]
            )
        yield question_record(
            f"name-{emoji.code}", turns=[(NAME_QUESTION, emoji.name)], images=[emoji.png]
        )
