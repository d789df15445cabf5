"""Plain text: CPython's topics and docstrings, one record per topic or module.

Held out: about one document in twenty. No held-out paragraph of 60 characters or more is in the
train text.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from data_recipes import stdlib_docs
from data_recipes.card import Card, between
from data_recipes.split import Split
from vltrain.batch import RecordKind
from vltrain.data.writer import ShardRecord, text_record


def card() -> Card:
    return Card(
        name="stdlib_text",
        source="pydoc topics and docstrings of the standard library",
        version=stdlib_docs.version(),
        licence=stdlib_docs.LICENCE,
        kind=RecordKind.text,
        synthetic=False,
        expected={Split.train: between(400, 800), Split.held_out: between(10, 60)},
        attribution=stdlib_docs.ATTRIBUTION,
    )


def samples(split: Split, *, limit: int | None = None) -> Iterator[ShardRecord]:
    wanted = (document for document in stdlib_docs.documents() if document.split is split)
    for document in islice(wanted, limit):
        yield text_record(document.key, text=document.text)
