"""The synthetic sets: drawn the same each time, and disjoint."""

from __future__ import annotations

import io
import random
import re

from PIL import Image

from data_recipes import easy_vqa, glyphs, ocr_lines, openmoji, synthetic_shapes, tagged_text
from data_recipes.split import Split


def test_shapes_are_drawn_the_same_each_time_and_never_twice() -> None:
    train = [r.members["png"] for r in synthetic_shapes.samples(Split.train, limit=300)]
    again = [r.members["png"] for r in synthetic_shapes.samples(Split.train, limit=300)]
    held_out = {r.members["png"] for r in synthetic_shapes.samples(Split.held_out)}
    assert train == again
    assert len(set(train)) == 300
    assert len(held_out) == 500
    assert not set(train) & held_out


def test_shapes_captions_name_what_is_drawn() -> None:
    words = set(synthetic_shapes.COLORS)
    for record in synthetic_shapes.samples(Split.train, limit=200):
        caption = str(record.members["txt"])
        named = re.findall(
            rf"an? ({'|'.join(words)}) ({'|'.join(synthetic_shapes.SHAPES)})", caption
        )
        assert len(named) == (2 if "above" in caption or "left" in caption else 1)


def test_every_shape_is_drawn_inside_the_picture_in_its_colour() -> None:
    seen = set()
    for number in range(150):
        picture, caption = synthetic_shapes.draw(random.Random(number))
        assert picture.size == (64, 64)
        color = re.search("|".join(synthetic_shapes.COLORS), caption)
        assert color
        rgb = synthetic_shapes.COLORS[color.group()]
        assert rgb in {c for _, c in picture.getcolors(64 * 64) or []}
        seen.add(caption.split()[-1])
    assert len(seen) >= 10


def test_shapes_are_not_easy_vqas() -> None:
    """easy-VQA has a plain ground; ours is patterned on every picture's border."""
    for record in synthetic_shapes.samples(Split.train, limit=100):
        data = record.members["png"]
        assert isinstance(data, bytes)
        picture = Image.open(io.BytesIO(data))
        border = {picture.getpixel((x, y)) for x in range(64) for y in (0, 63)}
        border |= {picture.getpixel((x, y)) for y in range(64) for x in (0, 63)}
        assert len(border) >= 2
    plain = Image.open(easy_vqa.image_paths(Split.train)[0])
    assert len({plain.getpixel((x, 0)) for x in range(64)}) == 1


def test_ocr_lines_differ_between_the_splits() -> None:
    sides = {}
    for split in Split:
        records = list(ocr_lines.samples(split))
        ocr_lines.card().check(split, len(records))
        captions = [str(r.members["txt"]) for r in records]
        sides[split] = {re.sub(r'^(the text|it says) "(.*)"$', r"\2", c) for c in captions}
        assert len(sides[split]) == len(records)
    assert not sides[Split.train] & sides[Split.held_out]


def test_ocr_pictures_hold_ink_and_are_not_cut() -> None:
    for record in ocr_lines.samples(Split.train, limit=30):
        data = record.members["png"]
        assert isinstance(data, bytes)
        picture = Image.open(io.BytesIO(data))
        darkest, lightest = picture.getextrema()
        assert lightest - darkest > 80
        edge = {picture.getpixel((x, y)) for x in range(picture.width) for y in (0, 1)}
        assert edge == {lightest}


def test_glyphs_are_drawn_the_same_each_time_and_never_twice() -> None:
    train = [r.members["png"] for r in glyphs.samples(Split.train, limit=200)]
    assert train == [r.members["png"] for r in glyphs.samples(Split.train, limit=200)]
    held_out = {r.members["png"] for r in glyphs.samples(Split.held_out)}
    assert len(set(train)) == 200
    assert not set(train) & held_out


def test_glyphs_captions_name_the_sign() -> None:
    captions = [str(r.members["txt"]) for r in glyphs.samples(Split.train, limit=300)]
    digits = sum(caption[-1] in glyphs.DIGITS for caption in captions)
    assert all(caption[-1] in glyphs.DIGITS + glyphs.LETTERS for caption in captions)
    assert 0.55 < digits / len(captions) < 0.8
    assert not any("digit" in c and c[-1] in glyphs.LETTERS for c in captions)


def test_tagged_text_says_its_words_again() -> None:
    """The words of the first line, in any order, are all that the phrase cannot do without."""
    first_words = set()
    for record in tagged_text.samples(Split.train, limit=300):
        assert list(record.members) == ["txt"]
        words, phrase = str(record.members["txt"]).split("\n")
        missing = set(words.split()) - set(phrase.split())
        assert missing <= {"digit", "number"}, (words, phrase)
        first_words.add(words.split()[0])
    assert {"red", "circle", "digit"} <= first_words


def test_tagged_text_names_no_held_out_emoji() -> None:
    held_out = {e.name for e in openmoji.emojis() if e.split is Split.held_out}
    held_out -= {e.name for e in openmoji.emojis() if e.split is Split.train}
    phrases = {str(r.members["txt"]).split("\n")[1] for r in tagged_text.samples(Split.train)}
    assert not held_out & {phrase.removeprefix("an emoji: ") for phrase in phrases}
    assert len(phrases) > 2000
