"""SYNTHETIC caption pairs: one digit or letter in a font that matplotlib ships, turned, slanted and
bent.

For warming up the towers: strokes that make signs, as a published encoder has met them by the
million. No handwriting is among them, so MNIST stays new to whatever learned from these.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from data_recipes.card import Card, exactly
from data_recipes.split import Split
from vltrain.batch import RecordKind
from vltrain.data.writer import ShardRecord, caption_record

SIDE = 64
NUMBER = {Split.train: 6000, Split.held_out: 300}
DIGITS = "0123456789"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Italic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralItalic.ttf",
    "cmr10.ttf",
    "cmss10.ttf",
    "cmtt10.ttf",
    "cmti10.ttf",
)
_PHRASES = ("the {} {}", "{1}", "a picture of the {} {}")


def card() -> Card:
    return Card(
        name="glyphs",
        source="drawn by this recipe with Pillow in the fonts of matplotlib",
        version="1",
        licence="Apache-2.0 (generated); fonts: Bitstream Vera, STIX and BaKoMa licences",
        kind=RecordKind.caption,
        synthetic=True,
        expected={split: exactly(number) for split, number in NUMBER.items()},
    )


def samples(split: Split, *, limit: int | None = None) -> Iterator[ShardRecord]:
    number = NUMBER[split] if limit is None else min(limit, NUMBER[split])
    for index in range(number):
        key = f"{split.value}-{index:05d}"
        picture, caption = draw(random.Random(f"glyphs-{key}"))
        data = io.BytesIO()
        picture.save(data, "PNG")
        yield caption_record(key, image=data.getvalue(), extension="png", text=caption)


def draw(rng: random.Random) -> tuple[Image.Image, str]:
    """A picture (grey, SIDE x SIDE) and its caption. Two of three are digits."""
    is_digit = rng.random() < 2 / 3
    sign = rng.choice(DIGITS if is_digit else LETTERS)
    picture = Image.new("L", (SIDE, SIDE), 0)
    font = _font(rng.choice(FONTS), rng.randint(44, 60))
    left, top, right, bottom = font.getbbox(sign)
    place = ((SIDE - left - right) / 2, (SIDE - top - bottom) / 2)
    width = rng.choice((0, 0, 1))
    ImageDraw.Draw(picture).text(place, sign, fill=255, font=font, stroke_width=width)
    picture = _bent(picture, rng)
    if rng.random() < 0.3:
        picture = picture.point(lambda value: 255 - value)
    caption = rng.choice(_PHRASES).format("digit" if is_digit else "letter", sign)
    return picture, caption


def _bent(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Turned by up to 15 degrees, slanted, resized by up to a fifth, moved a little."""
    turn, slant = math.radians(rng.uniform(-15, 15)), rng.uniform(-0.35, 0.35)
    wide, high = rng.uniform(0.85, 1.2), rng.uniform(0.85, 1.2)
    a, b = math.cos(turn) / wide, (math.sin(turn) + slant) / wide
    d, e = -math.sin(turn) / high, math.cos(turn) / high
    middle = SIDE / 2
    x, y = (middle + rng.uniform(-4, 4) for _ in range(2))
    matrix = (a, b, middle - a * x - b * y, d, e, middle - d * x - e * y)
    return picture.transform(
        (SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / name), size)
