"""OpenMoji: the source, its captions and its questions."""

from __future__ import annotations

import io
from collections import Counter

from PIL import Image

from data_recipes import emoji_caption, emoji_qa, openmoji
from data_recipes.split import Split
from vltrain.data.writer import ShardRecord


def by_code() -> dict[str, openmoji.Emoji]:
    return {emoji.code: emoji for emoji in openmoji.emojis()}


def pixels(emoji: openmoji.Emoji) -> bytes:
    return Image.open(io.BytesIO(emoji.png)).tobytes()


def answers(record: ShardRecord) -> list[str]:
    document = record.members["json"]
    assert isinstance(document, dict)
    return [m["content"] for m in document["messages"] if m["role"] == "assistant"]


def test_names_and_kinds_of_known_emoji() -> None:
    emoji = by_code()
    assert len(emoji) == 1914
    fries = emoji["1F35F"]
    assert (fries.name, fries.chinese, fries.kind) == ("french fries", "薯条", "food or drink")
    libya = emoji["1F1F1-1F1FE"]
    assert (libya.name, libya.chinese, libya.kind) == ("flag of Libya", "利比亚的旗帜", "a flag")
    assert emoji["1F600"].kind == "a face"
    assert emoji["1F468-200D-1F373"].kind == "a person"  # man cook
    assert emoji["1F37C"].kind == "food or drink"  # baby bottle, not a person
    assert emoji["1F977"].kind is None  # ninja lies among the faces
    assert not any("skin tone" in e.name for e in emoji.values())


def test_pictures_are_flat_rgb_on_white() -> None:
    picture = Image.open(io.BytesIO(by_code()["1F35F"].png))
    assert picture.mode == "RGB"
    assert picture.size == (64, 64)
    assert picture.getpixel((0, 0)) == (255, 255, 255)


def test_no_held_out_picture_is_in_train_under_another_name() -> None:
    train = {pixels(e) for e in openmoji.emojis() if e.split is Split.train}
    held_out = {pixels(e) for e in openmoji.emojis() if e.split is Split.held_out}
    assert not train & held_out
    norway, svalbard = by_code()["1F1F3-1F1F4"], by_code()["1F1F8-1F1EF"]
    assert pixels(norway) == pixels(svalbard)
    assert norway.split is svalbard.split


def test_captions_have_both_languages_and_the_cards_counts() -> None:
    train = list(emoji_caption.samples(Split.train))
    held_out = list(emoji_caption.samples(Split.held_out))
    emoji_caption.card().check(Split.train, len(train))
    emoji_caption.card().check(Split.held_out, len(held_out))
    assert not {r.key for r in train} & {r.key for r in held_out}
    captions = [str(r.members["txt"]) for r in train]
    chinese = sum(any("\u4e00" <= c <= "\u9fff" for c in caption) for caption in captions)
    assert 0.2 < chinese / len(captions) < 0.3


def test_questions() -> None:
    train = {r.key: r for r in emoji_qa.samples(Split.train)}
    held_out = list(emoji_qa.samples(Split.held_out))
    emoji_qa.card().check(Split.train, len(train))
    emoji_qa.card().check(Split.held_out, len(held_out))
    sides = {split: {e.code for e in openmoji.emojis() if e.split is split} for split in Split}
    assert set(train) == sides[Split.train]
    assert {r.key.partition("-")[2] for r in held_out} == sides[Split.held_out]
    assert {r.key.partition("-")[0] for r in held_out} == {"kind", "name"}
    assert answers(train["1F600"]) == ["a face", "grinning face"]
    assert Counter(len(answers(r)) for r in held_out) == {1: 290}


def test_limit() -> None:
    assert len(list(emoji_caption.samples(Split.train, limit=3))) == 3
    assert len(list(emoji_qa.samples(Split.held_out, limit=3))) == 3
