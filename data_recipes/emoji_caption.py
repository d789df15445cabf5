"""Caption pairs: an OpenMoji picture and its name, in English or (one picture in four) Chinese."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from data_recipes import openmoji
from data_recipes.card import Card, exactly
from data_recipes.split import Split, choose, fraction
from vltrain.batch import RecordKind
from vltrain.data.writer import ShardRecord, caption_record

CHINESE_SHARE = 0.25
_ENGLISH = ("{}", "an emoji: {}", "a drawing of this: {}", "this emoji shows: {}")
_CHINESE = ("{}", "表情符号：{}", "图中是{}")


def card() -> Card:
    return Card(
        name="emoji_caption",
        source="OpenMoji colour pictures; names of the emoji package",
        version=openmoji.VERSION,
        licence=openmoji.LICENCE,
        kind=RecordKind.caption,
        synthetic=False,
        expected={Split.train: exactly(1723), Split.held_out: exactly(191)},
        attribution=openmoji.ATTRIBUTION,
    )


def samples(split: Split, *, limit: int | None = None) -> Iterator[ShardRecord]:
    """One record per picture; the language is fixed by the picture's code."""
    wanted = (e for e in openmoji.emojis() if e.split is split)
    for emoji in islice(wanted, limit):
        if fraction(emoji.code, purpose="language") < CHINESE_SHARE:
            caption = choose(emoji.code, _CHINESE, purpose="phrase").format(emoji.chinese)
        else:
            caption = choose(emoji.code, _ENGLISH, purpose="phrase").format(emoji.name)
        yield caption_record(emoji.code, image=emoji.png, extension="png", text=caption)
