"""One leaf under two names, and samples that are there more than once.

In: the drawn leaves. Out: findings. A leaf that is listed twice is given twice its weight and seen
twice as often, and nothing in the figures says so. Two leaves over one path that draw different
modalities are no duplicates. Cost: the shards' digests from the catalogs, and one sort of all
content digests of the mix (16 bytes a sample).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from vltrain.data.layout import Shard
from vltrain.data.pieces import PieceTable
from vltrain.inspection.findings import Finding, Level
from vltrain.inspection.sample_digests import digests_of, joined

DUPLICATE_LEAF_SHARE = 0.5
"""So large a share of the smaller leaf in the other makes them one leaf under two names."""


def duplicate_findings(drawn: Sequence[PieceTable]) -> list[Finding]:
    """Pairs of leaves with the same shards or samples, and leaves with copies inside."""
    findings: list[Finding] = []
    explained = set()
    for left, right in combinations(drawn, 2):
        if left.modality is right.modality and (finding := _same_shards(left, right)):
            findings.append(finding)
            explained.add((left.name, right.name))
    contents = {}
    for table in drawn:
        keys, of_samples = joined(digests_of(table))
        contents[table.name] = np.unique(of_samples)
        findings += _inside(
            table,
            keys=len(keys) - len(np.unique(keys)),
            contents=len(of_samples) - len(contents[table.name]),
        )
    by_name = {table.name: table for table in drawn}
    for (left, right), count in _shared_contents(contents).items():
        if (left, right) not in explained:
            findings.append(_same_samples(by_name[left], by_name[right], count))
    return findings


def _same_shards(left: PieceTable, right: PieceTable) -> Finding | None:
    """An error where shards of the one are shards of the other: by path, else by content."""
    paths = [{shard.resolve() for shard in t.source.shards} for t in (left, right)]
    digests = [{index.xxh3_128 for index in t.source.indexes} for t in (left, right)]
    same_paths, same_digests = paths[0] & paths[1], digests[0] & digests[1]
    if not same_digests and not same_paths:
        return None
    how = (
        f"are the same files ({_first(same_paths)})"
        if same_paths
        else f"have the same content under other names ({left.source.config.path} and "
        f"{right.source.config.path})"
    )
    count = len(same_paths) if same_paths else len(same_digests)
    return Finding(
        level=Level.error,
        check="duplicate_leaf",
        what=f"{count} of their {len(left.source.shards)} and {len(right.source.shards)} shards "
        f"{how}: their samples get both weights",
        where=f"data.sources.{left.name} and data.sources.{right.name}",
        remedy="Keep one of the two and give it the weight that is meant",
    )


def _first(paths: set[Shard]) -> str:
    return str(min(paths)) + (", ..." if len(paths) > 1 else "")


def _shared_contents(contents: dict[str, np.ndarray]) -> Counter[tuple[str, str]]:
    """Samples with the same content, by pair of leaves (neighbours where more than two share
    one)."""
    names = list(contents)
    if not names:
        return Counter()
    values = np.concatenate([contents[name] for name in names])
    leaf = np.repeat(np.arange(len(names)), [len(contents[name]) for name in names])
    order = np.argsort(values, kind="stable")
    values, leaf = values[order], leaf[order]
    same = np.flatnonzero(values[1:] == values[:-1])
    pairs = leaf[same] * len(names) + leaf[same + 1]
    numbers, counts = np.unique(pairs, return_counts=True)
    return Counter(
        {
            (names[number // len(names)], names[number % len(names)]): count
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
        }
    )


def _same_samples(left: PieceTable, right: PieceTable, count: int) -> Finding:
    smaller = min(left.num_samples, right.num_samples)
    is_leaf = count >= DUPLICATE_LEAF_SHARE * smaller
    return Finding(
        level=Level.error if is_leaf else Level.warning,
        check="duplicate_leaf" if is_leaf else "shared_samples",
        what=f"{count:,} samples are in both, byte for byte ({left.num_samples:,} and "
        f"{right.num_samples:,} samples)",
        where=f"data.sources.{left.name} and data.sources.{right.name}",
        remedy="Keep one of the two and give it the weight that is meant"
        if is_leaf
        else "They are seen more often than either weight says; take them out of one",
    )


def _inside(table: PieceTable, *, keys: int, contents: int) -> list[Finding]:
    """Warnings of copies inside one leaf."""
    found = []
    for check, count, what in (
        ("copies", contents, "are copies, byte for byte, of others in it"),
        ("same_keys", keys, "have a key that another of its samples has"),
    ):
        if count:
            found.append(
                Finding(
                    level=Level.warning,
                    check=check,
                    what=f"{count:,} of {table.num_samples:,} samples {what}",
                    where=f"data.sources.{table.name}",
                    remedy="Write the shards again without them"
                    if check == "copies"
                    else "Give every sample a key of its own, or the ledger cannot name it",
                )
            )
    return found
