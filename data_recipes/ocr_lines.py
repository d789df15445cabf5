"""SYNTHETIC caption pairs: a word, a number or both, set in Pillow's own font, and what it says.

The words are those of the emoji package's English names (pinned, so the lines do not change with
the interpreter). Held-out lines are other lines, not other pictures of the same ones.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterator
from itertools import islice

from PIL import Image, ImageDraw, ImageFont

from data_recipes import packages
from data_recipes.card import Card, exactly
from data_recipes.split import Split, fraction, held_out_exactly
from vltrain.batch import RecordKind
from vltrain.data.writer import ShardRecord, caption_record

NUMBER = {Split.train: 3000, Split.held_out: 300}
_PHRASES = ('the text "{}"', 'it says "{}"', "{}")
_MARGIN = 4


def card() -> Card:
    return Card(
        name="ocr_lines",
        source="drawn by this recipe with Pillow's own font; words of the emoji package's names",
        version="1, emoji 2.16.0",
        licence="Apache-2.0 (generated)",
        kind=RecordKind.caption,
        synthetic=True,
        expected={split: exactly(number) for split, number in NUMBER.items()},
    )


def samples(split: Split, *, limit: int | None = None) -> Iterator[ShardRecord]:
    lines = _lines()
    held_out = held_out_exactly(lines, number=NUMBER[Split.held_out])
    wanted = (line for line in lines if (line in held_out) == (split is Split.held_out))
    for number, line in enumerate(islice(wanted, limit)):
        caption = _PHRASES[int(fraction(line, purpose="phrase") * len(_PHRASES))].format(line)
        yield caption_record(
            f"{split.value}-{number:05d}", image=_draw(line), extension="png", text=caption
        )


def _lines() -> list[str]:
    """All lines of both splits, each once."""
    names = packages.load("emoji").EMOJI_DATA.values()
    text = " ".join(entry["en"] for entry in names).lower().replace("_", " ")
    words = sorted({word for word in re.findall(r"[a-z]+", text) if 3 <= len(word) <= 9})
    rng = random.Random("ocr-lines")
    lines: dict[str, None] = {}
    while len(lines) < sum(NUMBER.values()):
        word = rng.choice(words)
        word = rng.choice((word, word, word.capitalize(), word.upper()))
        number = str(rng.randrange(10 ** rng.randint(1, 4)))
        lines[rng.choice((word, number, f"{word} {number}"))] = None
    return list(lines)


def _draw(line: str) -> bytes:
    rng = random.Random(f"ocr-line-{line}")
    font = ImageFont.load_default(size=rng.randint(16, 24))
    left, top, right, bottom = (int(edge) for edge in font.getbbox(line))
    size = (right - left + 2 * _MARGIN, bottom - top + 2 * _MARGIN)
    paper, ink = rng.randint(190, 255), rng.randint(0, 90)
    picture = Image.new("L", size, paper)
    ImageDraw.Draw(picture).text((_MARGIN - left, _MARGIN - top), line, fill=ink, font=font)
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()
