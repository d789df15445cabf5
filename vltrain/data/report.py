"""What ``prepare`` found: counts for people, by source.

In: the facts of a source's shards. Out: a report that renders itself as lines of text. Costs one
pass over the keys' digests (8 bytes a sample) to count duplicates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vltrain.batch import Modality
from vltrain.data.index import IndexFacts, ShardIndex
from vltrain.data.sidecar import TableFacts


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceReport:
    """Counts of one source.

    built_shards: indexed or measured by this run (the others were fresh). totals: by modality:
    samples, pieces, tokens, supervised, image_tokens, images. excluded: records that cannot be used
    or are listed, by reason. unmatched: rows of the exclusion list that name no record. split:
    samples cut into several pieces. duplicate_keys, duplicate_contents: samples beyond the first of
    each. ignored: members without key or extension. unreadable: image members whose header cannot
    be read. histogram: pieces with 2**i <= tokens < 2**(i + 1). image_sides: image members with
    2**i <= longer side in pixels < 2**(i + 1).
    """

    name: str
    modality: Modality
    shards: int
    built_shards: int
    bytes: int
    samples: int
    totals: dict[str, dict[str, int]]
    excluded: dict[str, int]
    unmatched: int
    split: int
    duplicate_keys: int
    duplicate_contents: int
    ignored: int
    unreadable: int
    histogram: tuple[int, ...]
    image_sides: tuple[int, ...]

    def summary(self) -> str:
        """One line."""
        mine = self.totals[self.modality.value]
        bad = sum(self.excluded.values())
        reasons = f" ({_counts(self.excluded)})" if bad else ""
        return (
            f"{self.name}: {mine['samples']:,} {self.modality.value} samples in {self.shards} "
            f"shards ({self.built_shards} made now), {mine['tokens']:,} tokens "
            f"({mine['image_tokens']:,} of images), {bad} excluded{reasons}"
        )

    def lines(self) -> list[str]:
        """The summary, and a line for everything out of the ordinary."""
        notes = {
            "rows of the exclusion list that name no record": self.unmatched,
            "samples cut into several pieces": self.split,
            "duplicate keys": self.duplicate_keys,
            "duplicate contents": self.duplicate_contents,
            "members without key or extension, ignored": self.ignored,
            "image members that cannot be read": self.unreadable,
        }
        for modality, total in self.totals.items():
            if modality != self.modality.value:
                notes[f"{modality} samples that this source does not draw"] = total["samples"]
        sides = _counts(binned(self.image_sides))
        return [
            self.summary(),
            *(f"  {count:,} {what}" for what, count in notes.items() if count),
            f"  tokens per piece: {_counts(binned(self.histogram))}",
            *([f"  longer side of images, pixels: {sides}"] if sides else []),
        ]

    def as_json(self) -> dict[str, Any]:
        names = self.__dataclass_fields__
        return {**{name: getattr(self, name) for name in names}, "modality": self.modality.value}


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareReport:
    """The reports of all sources."""

    sources: tuple[SourceReport, ...]

    def lines(self) -> list[str]:
        return [line for source in self.sources for line in source.lines()]


def source_report(
    name: str,
    *,
    modality: Modality,
    indexes: Sequence[IndexFacts],
    tables: Sequence[TableFacts],
    built_shards: int,
    unmatched: int,
    opened: Iterable[ShardIndex],
) -> SourceReport:
    """Sum up a source's shards."""
    keys, contents = [], []
    sides = np.zeros(32, dtype=np.int64)
    for index in opened:
        keys.append(index.key_digests)
        contents.append(index.content_digests)
        longer = np.maximum(*index.image_sizes())
        sides += np.bincount(np.log2(longer).astype(np.int64), minlength=len(sides))
    totals = {
        side: {what: sum(table.totals[side][what] for table in tables) for what in counts}
        for side, counts in tables[0].totals.items()
    }
    histogram = np.zeros(max(len(table.histogram) for table in tables), dtype=np.int64)
    for table in tables:
        histogram[: len(table.histogram)] += np.array(table.histogram, dtype=np.int64)
    reasons = Counter(row.reason for table in tables for row in table.excluded)
    return SourceReport(
        name=name,
        modality=modality,
        shards=len(tables),
        built_shards=built_shards,
        bytes=sum(index.bytes for index in indexes),
        samples=sum(table.samples for table in tables),
        totals=totals,
        excluded=dict(reasons.most_common()),
        unmatched=unmatched,
        split=sum(table.split for table in tables),
        duplicate_keys=_duplicates(keys),
        duplicate_contents=_duplicates(contents),
        ignored=sum(index.ignored for index in indexes),
        unreadable=sum(index.unreadable for index in indexes),
        histogram=tuple(histogram.tolist()),
        image_sides=tuple(np.trim_zeros(sides, "b").tolist()),
    )


def binned(histogram: Sequence[int]) -> dict[str, int]:
    """``32-63`` -> count, of the bins that hold something."""
    return {f"{2**i}-{2 ** (i + 1) - 1}": count for i, count in enumerate(histogram) if count}


def _duplicates(digests: list[np.ndarray]) -> int:
    everything = np.concatenate(digests)
    return len(everything) - len(np.unique(everything))


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{what} {count:,}" for what, count in counts.items())
