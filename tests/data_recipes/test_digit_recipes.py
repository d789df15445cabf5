"""MNIST digits: exact split, captions and questions."""

from __future__ import annotations

import io
from collections import Counter

from PIL import Image

from data_recipes import digits_caption, digits_qa, mnist
from data_recipes.split import Split


def test_fifty_of_every_digit_are_held_out() -> None:
    held_out = Counter(d.label for d in mnist.digits() if d.split is Split.held_out)
    assert held_out == dict.fromkeys(range(10), 50)
    assert Counter(d.label for d in mnist.digits()) == dict.fromkeys(range(10), 500)


def test_both_recipes_share_the_sides_and_no_image_is_on_both() -> None:
    images = {}
    for recipe in (digits_caption, digits_qa):
        for split in Split:
            records = list(recipe.samples(split))
            recipe.card().check(split, len(records))
            member = "png" if recipe is digits_caption else "0.png"
            images[recipe.__name__, split] = {r.members[member] for r in records}
    assert (
        images["data_recipes.digits_caption", Split.train]
        == (images["data_recipes.digits_qa", Split.train])
    )
    for name in ("data_recipes.digits_caption", "data_recipes.digits_qa"):
        assert not images[name, Split.train] & images[name, Split.held_out]
        assert len(images[name, Split.train]) == 4500


def test_captions_and_answers_say_the_label() -> None:
    labels = {d.key: d.label for d in mnist.digits()}
    captions = list(digits_caption.samples(Split.train, limit=50))
    for record in captions:
        caption, label = str(record.members["txt"]), labels[record.key]
        assert str(label) in caption or mnist.WORDS[label] in caption
    assert len({str(r.members["txt"]) for r in captions}) > 20
    [record] = digits_qa.samples(Split.held_out, limit=1)
    assert record.members["json"] == {
        "messages": [
            {"role": "user", "content": "<image>\nWhich digit is this?"},
            {"role": "assistant", "content": str(labels[record.key])},
        ]
    }


def test_pictures_are_small_grey_pngs() -> None:
    [record] = digits_caption.samples(Split.train, limit=1)
    data = record.members["png"]
    assert isinstance(data, bytes)
    picture = Image.open(io.BytesIO(data))
    assert (picture.mode, picture.size) == ("L", (28, 28))
