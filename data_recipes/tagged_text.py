"""SYNTHETIC plain text: a line of words in any order, then a phrase that is made of them.

For the language model's warm start alone. A published language model has read so much that what it
says follows from words that stand anywhere before it; a tiny one that has read a few hundred pages
of documentation takes no notice of them, and an adaptor cannot speak to it. These lines teach that,
and the names of things: "circle teal" and then "a drawing of a teal circle". There is no picture
and no question in it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

from data_recipes import mnist, openmoji, synthetic_shapes
from data_recipes.card import Card, exactly
from data_recipes.split import Split
from vltrain.batch import RecordKind
from vltrain.data.writer import ShardRecord, text_record

NUMBER = 12000


def card() -> Card:
    return Card(
        name="tagged_text",
        source="written by this recipe; names of the emoji package",
        version="1",
        licence="Apache-2.0 (generated)",
        kind=RecordKind.text,
        synthetic=True,
        expected={Split.train: exactly(NUMBER)},
    )


def samples(split: Split, *, limit: int | None = None) -> Iterator[ShardRecord]:
    names = [e.name for e in openmoji.emojis() if e.split is split]
    kinds = (_shape, _digit, lambda rng: _named(rng, names))
    for index in islice(range(NUMBER), limit):
        key = f"{split.value}-{index:05d}"
        rng = random.Random(f"tagged-text-{key}")
        words, phrase = rng.choice(kinds)(rng)
        rng.shuffle(words)
        yield text_record(key, text=f"{' '.join(words)}\n{phrase}")


def _shape(rng: random.Random) -> tuple[list[str], str]:
    color, shape = rng.choice(sorted(synthetic_shapes.COLORS)), rng.choice(synthetic_shapes.SHAPES)
    a = "an" if color == "orange" else "a"
    phrase = rng.choice(("{}", "{} on patterned paper", "a drawing of {}", "this is {}"))
    return [color, shape], phrase.format(f"{a} {color} {shape}")


def _digit(rng: random.Random) -> tuple[list[str], str]:
    digit = rng.randrange(10)
    name = rng.choice((mnist.WORDS[digit], str(digit)))
    kind = rng.choice(("digit", "number"))
    phrase = rng.choice(("a handwritten {}", "the digit {}", "the number {}"))
    return [kind, name], phrase.format(name)


def _named(rng: random.Random, names: list[str]) -> tuple[list[str], str]:
    name = rng.choice(names)
    phrase = rng.choice(("{}", "an emoji: {}", "a drawing of this: {}"))
    return list(dict.fromkeys(name.split())), phrase.format(name)
