"""A handful of photographs and scans that scikit-image ships, with captions written for this
recipe.

Too few to learn from: they exercise large, grey, transparent and unusually shaped images (up to
1411 x 1411) and give every report a few real photographs. Captions follow the notes in
``skimage.data``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from data_recipes import packages
from data_recipes.card import Card, exactly
from data_recipes.split import Split
from vltrain.batch import RecordKind
from vltrain.data.writer import ShardRecord, caption_record

PHOTOS = {
    Split.train: {
        "astronaut.png": "the astronaut Eileen Collins in an orange space suit, helmet beside her",
        "brick.png": "a wall of bricks seen at a slant, in grey",
        "cell.png": "a cell floating in saline, as a phase image",
        "chelsea.png": "the face of a tabby cat named Chelsea",
        "clock_motion.png": "a wall clock blurred by the motion of the camera",
        "coins.png": "rows of Greek coins from Pompeii on a dark ground",
        "color.png": "a colour wheel on black",
        "grass.png": "grass from above, in grey",
        "horse.png": "the black silhouette of a horse",
        "hubble_deep_field.jpg": "hundreds of distant galaxies seen by the Hubble telescope",
        "ihc.png": "colonic glands under the microscope, stained brown and blue",
        "microaneurysms.png": "a detail of a retina with small lesions, in grey",
        "motorcycle_left.png": "a red motorcycle parked in a garage",
        "page.png": "a scanned page of printed text headed Region-based segmentation",
        "retina.jpg": "the retina of a human eye, orange with branching vessels",
        "rocket.jpg": "a Falcon 9 rocket on its launch pad before dawn",
    },
    Split.held_out: {
        "camera.png": "a man in a black coat behind a camera on a tripod",
        "coffee.png": "a cup of espresso on a red saucer with a spoon, on a wooden table",
        "gravel.png": "gravel from above, in grey",
        "moon.png": "the surface of the moon with craters",
        "text.png": "handwritten formulas on a slanted sheet of paper",
    },
}


def card() -> Card:
    return Card(
        name="photos",
        source="files of skimage/data; captions written for this recipe",
        version="scikit-image 0.26.0",
        licence="public domain or CC0 by the per-file notes in skimage.data; package BSD-3-Clause",
        kind=RecordKind.caption,
        synthetic=False,
        expected={split: exactly(len(files)) for split, files in PHOTOS.items()},
        attribution="Photographs: scikit-image sample data (NASA, SpaceX, Brooklyn Museum, others)",
    )


def samples(split: Split, *, limit: int | None = None) -> Iterator[ShardRecord]:
    folder = packages.folder("skimage") / "data"
    for name, caption in islice(PHOTOS[split].items(), limit):
        stem, extension = name.split(".")
        image = (folder / name).read_bytes()
        yield caption_record(stem, image=image, extension=extension, text=caption)
