"""Keys and contents of a leaf's samples as digests, from its indexes.

In: an opened piece table. Out: 64-bit digests of the samples that the leaf draws (its modality, not
excluded), shard by shard. Costs 16 bytes a sample and no read of a shard. Contents are compared as
stored: names and bytes of all members, so the same picture with another text is another content;
pictures have digests of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from vltrain.batch import Modality
from vltrain.data.pieces import PieceTable
from vltrain.data.sidecar import open_table


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardDigests:
    """Samples of one shard that a leaf draws. rows: int64; keys, contents: uint64."""

    table: PieceTable
    shard: int
    rows: np.ndarray
    keys: np.ndarray
    contents: np.ndarray

    def images(self) -> tuple[np.ndarray, np.ndarray]:
        """Digests of the samples' pictures (uint64), and the row of each (int64)."""
        return self.table.source.index(self.shard).image_digests(self.rows)

    def names(self, mask: np.ndarray, *, most: int) -> list[str]:
        """``shard:key`` of the first samples under ``mask``."""
        index = self.table.source.index(self.shard)
        shard = self.table.source.shards[self.shard].name
        return [f"{shard}:{index.key(int(row))}" for row in self.rows[mask][:most]]

    def key_texts(self, mask: np.ndarray) -> list[str]:
        """The keys under ``mask``."""
        index = self.table.source.index(self.shard)
        return [index.key(int(row)) for row in self.rows[mask]]


def digests_of(table: PieceTable) -> Iterator[ShardDigests]:
    """The leaf's samples, shard by shard."""
    source, wanted = table.source, table.modality is Modality.multimodal
    for number, shard in enumerate(source.shards):
        columns = open_table(shard, index_dir=source.config.index_dir, spec=table.spec)
        rows = np.unique(columns.row[columns.multimodal == wanted]).astype(np.int64)
        index = source.index(number)
        yield ShardDigests(
            table=table,
            shard=number,
            rows=rows,
            keys=index.key_digests[rows],
            contents=index.content_digests[rows],
        )


def joined(digests: Iterable[ShardDigests]) -> tuple[np.ndarray, np.ndarray]:
    """(keys, contents) of all shards, uint64."""
    parts = list(digests)
    return (
        np.concatenate([part.keys for part in parts]),
        np.concatenate([part.contents for part in parts]),
    )
