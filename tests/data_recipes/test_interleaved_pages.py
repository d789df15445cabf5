"""Interleaved documents and photographs: parts from the right side, texts and images in step."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

from PIL import Image

from data_recipes import interleaved_pages, mnist, openmoji, photos
from data_recipes.split import Split
from vltrain.data.writer import ShardRecord


def document(record: ShardRecord) -> dict[str, Any]:
    content = record.members["json"]
    assert isinstance(content, dict)
    return content


def images(record: ShardRecord) -> list[bytes]:
    return [v for name, v in record.members.items() if name != "json" and isinstance(v, bytes)]


def test_counts_and_layout() -> None:
    for split in Split:
        records = list(interleaved_pages.samples(split))
        interleaved_pages.card().check(split, len(records))
        sorts = Counter(r.key.partition("-")[0] for r in records)
        assert sorts["list"] == sorts["sum"] == interleaved_pages.NUMBER[split]
        for record in records:
            content = document(record)
            places = [name for name in content["images"] if name]
            assert places == [f"{i}.png" for i in range(len(images(record)))]
            assert 2 <= len(places) <= 5
            for text, image in zip(content["texts"], content["images"], strict=True):
                assert (text is None) != (image is None)
    assert {"list", "sum", "page", "album"} == {
        r.key.partition("-")[0] for r in interleaved_pages.samples(Split.train, limit=12)
    }


def test_no_held_out_picture_is_in_a_train_document() -> None:
    kept = {e.png for e in openmoji.emojis() if e.split is Split.held_out}
    kept |= {d.png for d in mnist.digits() if d.split is Split.held_out}
    used = [set(), set()]
    for side, split in enumerate(Split):
        for record in interleaved_pages.samples(split):
            used[side] |= set(images(record))
    assert not used[0] & kept
    assert not used[0] & used[1]


def test_sums_add_up() -> None:
    labels = {d.png: d.label for d in mnist.digits()}
    records = [r for r in interleaved_pages.samples(Split.train) if r.key.startswith("sum")]
    for record in records[:100]:
        digits = [labels[image] for image in images(record)]
        said = [t for t in document(record)["texts"] if t and t.startswith("is ")]
        pairs = zip(digits[::2], digits[1::2], strict=True)
        assert said == [f"is {a + b}." for a, b in pairs]


def test_lists_name_their_pictures() -> None:
    by_picture: dict[bytes, set[str]] = {}
    for emoji in openmoji.emojis():
        by_picture.setdefault(emoji.png, set()).add(emoji.name)
    records = [r for r in interleaved_pages.samples(Split.train) if r.key.startswith("list")]
    for record in records[:100]:
        said = [t for t in document(record)["texts"] if t][1:]
        assert all(name in by_picture[png] for name, png in zip(said, images(record), strict=True))


def test_photographs_decode_and_are_disjoint() -> None:
    assert not photos.PHOTOS[Split.train].keys() & photos.PHOTOS[Split.held_out].keys()
    sizes = []
    for split in Split:
        records = list(photos.samples(split))
        photos.card().check(split, len(records))
        for record in records:
            [image] = [v for n, v in record.members.items() if n != "txt"]
            assert isinstance(image, bytes)
            sizes.append(Image.open(io.BytesIO(image)).size)
    assert max(sizes) == (1411, 1411)
