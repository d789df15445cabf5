"""The card of a data set: where it comes from, under which licence, and how many records to
expect.

In: literals in a recipe. Out: a frozen record that is written as ``card.json`` beside the shards
and against which the written counts are checked. A count is a range: exact for pinned packages,
wide where the interpreter's own text is the source (Python 3.11 and 3.12 word their documentation
differently).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from data_recipes.split import Split
from vltrain.batch import RecordKind
from vltrain.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """Expected number of records, both ends included."""

    low: int
    high: int

    def __contains__(self, number: int) -> bool:
        return self.low <= number <= self.high

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low} to {self.high}"


def exactly(number: int) -> Count:
    return Count(low=number, high=number)


def between(low: int, high: int) -> Count:
    return Count(low=low, high=high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What a data set is.

    version: of the source (package version). licence: of the data, not of the package's code where
    they differ. attribution: one line to show beside figures; empty where the licence asks for
    none. revision: raised when the recipe's own wording or split changes. expected: counts by
    split; a split that is absent is not written. limit: set where a smaller copy was asked for.
    """

    name: str
    source: str
    version: str
    licence: str
    kind: RecordKind
    synthetic: bool
    expected: dict[Split, Count]
    attribution: str = ""
    notes: str = ""
    revision: int = 1
    limit: int | None = None

    def limited(self, limit: int | None) -> Card:
        """The card of the first ``limit`` records of each split; the card itself without a
        limit."""
        if limit is None:
            return self
        if limit < 1:
            raise DataError(f"limit={limit} for {self.name}: expected at least 1 record")
        expected = {
            split: Count(low=min(count.low, limit), high=min(count.high, limit))
            for split, count in self.expected.items()
        }
        return dataclasses.replace(self, expected=expected, limit=limit)

    def check(self, split: Split, number: int) -> None:
        """Raise DataError when ``number`` records are not what the card expects of ``split``."""
        expected = self.expected[split]
        if number not in expected:
            raise DataError(
                f"{self.name}/{split.value}: {number} records written, but its card expects "
                f"{expected} (source: {self.source} {self.version}). The installed source is not "
                "the one that the recipe was written for: install the versions of the demo extra "
                "(pip install 'vltrain[demo]')"
            )

    def to_json(self) -> dict[str, Any]:
        """The card as JSON-able values, in a fixed order."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["kind"] = self.kind.value
        values["expected"] = {s.value: [c.low, c.high] for s, c in self.expected.items()}
        return values
