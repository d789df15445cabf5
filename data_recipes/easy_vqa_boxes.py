"""Where the figure of an easy-VQA picture is: a name for it and its box, for DeepSeek-VL2 models.

The name says what the picture's questions and answers tell of its colour and shape ("the teal
circle", "the shape" where they tell neither). The box is the smallest that holds every pixel that
is not of the background, which has one colour: nobody drew it by hand, and it is exact to the
pixel. The user's turn is the name alone, as ``launch/ask.py --as ref`` asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from itertools import islice

import numpy as np
from PIL import Image

from data_recipes import easy_vqa
from data_recipes.card import Card, exactly
from data_recipes.shapes_caption import facts
from data_recipes.split import Split
from vltrain.batch import RecordKind
from vltrain.data.writer import ShardRecord, conversation_record


def card() -> Card:
    return Card(
        name="easy_vqa_boxes",
        source="easy-VQA pictures and split as packaged; boxes from their pixels, names by rule "
        "from the questions' answers",
        version=easy_vqa.VERSION,
        licence=easy_vqa.LICENCE,
        kind=RecordKind.conversation,
        synthetic=False,
        expected={Split.train: exactly(4000), Split.held_out: exactly(1000)},
    )


def samples(split: Split, *, limit: int | None = None) -> Iterator[ShardRecord]:
    paths = easy_vqa.image_paths(split)
    for image, pairs in islice(sorted(easy_vqa.questions_by_image(split).items()), limit):
        stored = paths[image].read_bytes()
        name = {"type": "ref", "text": figure_name(*facts(pairs))}
        place = {"type": "boxes", "boxes": [list(figure_box(stored))]}
        yield conversation_record(
            f"find-{split.value}-{image:04d}",
            messages=[
                ("user", [{"type": "image"}, {"type": "text", "text": "\n"}, name]),
                ("assistant", [name, place]),
            ],
            images=[stored],
        )


def figure_name(color: str | None, shape: str | None) -> str:
    return " ".join(filter(None, ("the", color, shape or "shape")))


def figure_box(stored: bytes) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in pixels, of all that has another colour than most of the
    picture's border."""
    pixels = np.asarray(Image.open(BytesIO(stored)).convert("RGB"))
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colors, counts = np.unique(border, axis=0, return_counts=True)
    rows, columns = np.nonzero((pixels != colors[counts.argmax()]).any(axis=2))
    left, top = int(columns.min()), int(rows.min())
    return left, top, int(columns.max()) + 1, int(rows.max()) + 1
