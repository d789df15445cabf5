"""SYNTHETIC caption pairs: one or two shapes drawn by Pillow on patterned paper, for warming up
the towers.

Not easy-VQA's pictures: striped or chequered paper instead of a plain ground, dark outlines,
turned shapes, eleven forms and twelve colours, 64 pixels, often two shapes with their places.
About 1 ms a picture.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Iterator

from PIL import Image, ImageDraw

from data_recipes.card import Card, exactly
from data_recipes.split import Split
from vltrain.batch import RecordKind
from vltrain.data.writer import ShardRecord, caption_record

SIDE = 64
NUMBER = {Split.train: 6000, Split.held_out: 500}
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 150, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 215, 40),
    "teal": (20, 140, 140),
    "brown": (125, 75, 35),
    "gray": (125, 125, 125),
    "black": (20, 20, 20),
    "orange": (245, 140, 20),
    "purple": (130, 50, 170),
    "pink": (250, 130, 190),
    "white": (255, 255, 255),
}
SHAPES = ("circle", "square", "rectangle", "triangle", "pentagon", "hexagon")
SHAPES += ("star", "cross", "ring", "ellipse", "half circle")

_OVERSAMPLE = 2
_PHRASES = ("{}", "{} on patterned paper", "a drawing of {}")


def card() -> Card:
    return Card(
        name="synthetic_shapes",
        source="drawn by this recipe with Pillow",
        version="1",
        licence="Apache-2.0 (generated)",
        kind=RecordKind.caption,
        synthetic=True,
        expected={split: exactly(number) for split, number in NUMBER.items()},
    )


def samples(split: Split, *, limit: int | None = None) -> Iterator[ShardRecord]:
    number = NUMBER[split] if limit is None else min(limit, NUMBER[split])
    for index in range(number):
        key = f"{split.value}-{index:05d}"
        picture, caption = draw(random.Random(f"synthetic-shapes-{key}"))
        data = io.BytesIO()
        picture.save(data, "PNG")
        yield caption_record(key, image=data.getvalue(), extension="png", text=caption)


def draw(rng: random.Random) -> tuple[Image.Image, str]:
    """A picture (RGB, SIDE x SIDE) and its caption."""
    side = SIDE * _OVERSAMPLE
    picture = _paper(rng, side=side)
    pen = ImageDraw.Draw(picture)
    named = []
    places, relation = _places(rng, side=side)
    for color, (x, y, radius) in zip(rng.sample(sorted(COLORS), len(places)), places, strict=True):
        shape = rng.choice(SHAPES)
        _shape(pen, shape, color=COLORS[color], center=(x, y), radius=radius, turn=rng.random())
        named.append(f"{'an' if color == 'orange' else 'a'} {color} {shape}")
    caption = rng.choice(_PHRASES).format(relation.join(named))
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX), caption


def _places(rng: random.Random, *, side: int) -> tuple[list[tuple[float, float, float]], str]:
    """(x, y, radius) of each shape and the words between their names."""
    if rng.random() < 0.6:
        radius = side * rng.uniform(0.14, 0.3)
        x, y = (rng.uniform(radius + 2, side - radius - 2) for _ in range(2))
        return [(x, y, radius)], ""
    first, second = side * rng.uniform(0.24, 0.28), side * rng.uniform(0.72, 0.76)
    across = side * rng.uniform(0.35, 0.65)
    radii = [side * rng.uniform(0.14, 0.21) for _ in range(2)]
    if rng.random() < 0.5:
        return [(first, across, radii[0]), (second, across, radii[1])], " to the left of "
    return [(across, first, radii[0]), (across, second, radii[1])], " above "


def _paper(rng: random.Random, *, side: int) -> Image.Image:
    """Pale stripes or checks in two tints."""
    tints = [tuple(rng.randint(185, 250) for _ in range(3)) for _ in range(2)]
    picture = Image.new("RGB", (side, side), tints[0])
    pen = ImageDraw.Draw(picture)
    step = rng.randint(8, 20)
    pattern = rng.choice(("rows", "columns", "checks"))
    for row in range(0, side, step):
        for column in range(0, side, step):
            number = {"rows": row, "columns": column, "checks": row + column}[pattern] // step
            if number % 2:
                pen.rectangle((column, row, column + step - 1, row + step - 1), fill=tints[1])
    return picture


def _shape(
    pen: ImageDraw.ImageDraw,
    shape: str,
    *,
    color: tuple[int, int, int],
    center: tuple[float, float],
    radius: float,
    turn: float,
) -> None:
    """``turn``: fraction of a full turn that shapes with corners are rotated by."""
    x, y = center
    ink = (60, 60, 60)
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, fill=color, outline=ink, width=2)
    elif shape == "ring":
        pen.ellipse(box, outline=color, width=max(4, int(radius * 0.4)))
    elif shape == "ellipse":
        pen.ellipse(
            (x - radius, y - radius / 2, x + radius, y + radius / 2), fill=color, outline=ink
        )
    elif shape == "half circle":
        pen.pieslice(box, turn * 360, turn * 360 + 180, fill=color, outline=ink)
    else:
        corners = [
            (
                x + radius * length * math.cos(2 * math.pi * (angle + turn)),
                y + radius * length * math.sin(2 * math.pi * (angle + turn)),
            )
            for length, angle in _corners(shape)
        ]
        pen.polygon(corners, fill=color, outline=ink, width=2)


def _corners(shape: str) -> list[tuple[float, float]]:
    """(distance from the centre in radii, angle in turns) of every corner."""
    regular = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6}
    if shape in regular:
        return [(1.0, i / regular[shape]) for i in range(regular[shape])]
    if shape == "rectangle":
        return [(1.0, angle) for angle in (0.07, 0.43, 0.57, 0.93)]
    if shape == "star":
        return [(1.0 if i % 2 == 0 else 0.42, i / 10) for i in range(10)]
    assert shape == "cross"
    arm = math.atan2(1, 3) / (2 * math.pi)  # three times as long as wide
    inner = math.hypot(1 / 3, 1 / 3) / math.hypot(1, 1 / 3)
    return [
        corner
        for quarter in range(4)
        for corner in (
            (1.0, quarter / 4 - arm),
            (1.0, quarter / 4 + arm),
            (inner, quarter / 4 + 1 / 8),
        )
    ]
