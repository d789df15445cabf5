"""Pieces of a source: their sizes for the plan, their content for the loader.

In: an opened Source and the encoder. Out: ``PieceTable`` (sizes by sample, from the token table;
what the plan computes with) and ``PieceReader`` (one piece, read and encoded). Samples and pieces
are numbered over all shards, in order, counting only those that the leaf draws (its modality, not
excluded). Opening reads catalogs only; a shard's columns are mapped when first asked for. Reading
a piece costs a pread for the text, one for each image of the piece, and its tokenization.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import xxhash

from vltrain.batch import Example, Modality, Origin
from vltrain.data.layout import PREPARE_COMMAND
from vltrain.data.reader import ShardReader
from vltrain.data.records import parse_record
from vltrain.data.sidecar import (
    COUNTED,
    Excluded,
    TableColumns,
    find_tables,
    open_table,
    table_spec,
)
from vltrain.data.sources import RecentlyUsed, Source
from vltrain.errors import DataError
from vltrain.processing.encode import Encoder

OPEN_TABLES = 256
KEPT_EXAMPLES = 256
"""Long documents whose encoding a process keeps: their pieces come near to each other, and encoding
the whole document again for each would cost its length squared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PieceColumns:
    """Pieces as equal-long columns, in order. ``piece`` and ``sample``: numbers in the leaf,
    int64; the others int32, as in PieceRef."""

    piece: np.ndarray
    sample: np.ndarray
    tokens: np.ndarray
    supervised: np.ndarray
    image_tokens: np.ndarray
    images: np.ndarray


@dataclass(frozen=True, slots=True)
class _ShardPieces:
    """The drawn pieces of one shard. ``sample``: int64, number of each piece's sample in the
    shard."""

    columns: TableColumns
    sample: np.ndarray


class PieceTable:
    """Sizes of all pieces of a leaf.

    name, modality, num_samples, num_pieces; digest: 32 hex digits over shard contents, lengths
    and modality (paths and names of folders do not enter). shard_samples: drawn samples of each
    shard. totals: tokens, supervised, image_tokens, images. excluded: records of each shard that
    cannot be used. other_samples: samples of the other modality, by shard.
    """

    def __init__(self, source: Source, *, encoder_digest: str) -> None:
        config = source.config
        self.source, self.name, self.modality = source, source.name, config.modality
        self.spec = table_spec(config, encoder_digest=encoder_digest)
        facts = find_tables(
            source.name,
            source.shards,
            source.indexes,
            index_dir=config.index_dir,
            spec=self.spec,
        )
        mine = [table.totals[self.modality.value] for table in facts]
        (other,) = set(Modality) - {self.modality}
        self.shard_samples = [total["samples"] for total in mine]
        self.other_samples = [table.totals[other.value]["samples"] for table in facts]
        self.totals = {name: sum(total[name] for total in mine) for name in COUNTED}
        self.excluded: list[tuple[Excluded, ...]] = [table.excluded for table in facts]
        self._first_sample = list(accumulate(self.shard_samples, initial=0))
        self._first_piece = list(accumulate((total["pieces"] for total in mine), initial=0))
        self.num_samples = self._first_sample[-1]
        self.num_pieces = self._first_piece[-1]
        shards = [
            (path.name, index.xxh3_128, table.digest)
            for path, index, table in zip(source.shards, source.indexes, facts, strict=True)
        ]
        content = json.dumps([self.modality.value, self.spec.as_json(), shards])
        self.digest = xxhash.xxh3_128_hexdigest(content.encode())
        self._opened = RecentlyUsed(self._open, capacity=OPEN_TABLES)
        if not self.num_samples:
            raise DataError(
                f"source {self.name!r} draws nothing: its {len(source.shards)} shards hold "
                f"{sum(self.other_samples)} {other.value} samples, {sum(map(len, self.excluded))} "
                f"unusable records and no {self.modality.value} ones; correct its modality or path"
            )

    def pieces_of_samples(self, first: int, count: int) -> PieceColumns:
        """All pieces of samples ``first`` to ``first + count - 1`` (numbers in the leaf)."""
        end = first + count
        assert count > 0, count
        assert 0 <= first < end <= self.num_samples, (first, count, self.num_samples)
        shard = bisect_right(self._first_sample, first) - 1
        parts = []
        while first < end:
            upto = min(end, self._first_sample[shard + 1])
            if first < upto:
                parts.append(self._part(shard, first, upto))
            first, shard = max(first, upto), shard + 1
        if len(parts) == 1:
            return parts[0]
        names = ("piece", "sample", *COUNTED)
        return PieceColumns(
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        )

    def locate(self, piece: int) -> tuple[int, int, int, int]:
        """(shard, row of the sample in the shard, start, tokens) of a piece."""
        assert 0 <= piece < self.num_pieces, piece
        shard = bisect_right(self._first_piece, piece) - 1
        columns = self._opened.get(shard).columns
        at = piece - self._first_piece[shard]
        return shard, int(columns.row[at]), int(columns.start[at]), int(columns.tokens[at])

    def locate_samples(self, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shards and rows (int64) of the samples of many pieces, as ``locate`` gives them."""
        shards = np.searchsorted(self._first_piece, pieces, side="right") - 1
        rows = np.empty(len(pieces), dtype=np.int64)
        for shard in np.unique(shards).tolist():
            here = shards == shard
            row = self._opened.get(shard).columns.row
            rows[here] = row[pieces[here] - self._first_piece[shard]]
        return shards, rows

    def _part(self, shard: int, first: int, end: int) -> PieceColumns:
        """Pieces of samples first..end, all of this shard."""
        offset = self._first_sample[shard]
        pieces = self._opened.get(shard)
        low, high = np.searchsorted(pieces.sample, [first - offset, end - offset])
        columns = pieces.columns
        return PieceColumns(
            piece=np.arange(low, high, dtype=np.int64) + self._first_piece[shard],
            sample=pieces.sample[low:high] + offset,
            **{name: getattr(columns, name)[low:high] for name in COUNTED},
        )

    def _open(self, shard: int) -> _ShardPieces:
        path, index_dir = self.source.shards[shard], self.source.config.index_dir
        columns = open_table(path, index_dir=index_dir, spec=self.spec)
        mine = columns.multimodal == (self.modality is Modality.multimodal)
        if not mine.all():
            names = TableColumns.__dataclass_fields__
            columns = TableColumns(**{name: getattr(columns, name)[mine] for name in names})
        # Rows ascend: a sample begins where the row changes.
        sample = np.concatenate(([0], np.cumsum(np.diff(columns.row) != 0)))[: len(columns.row)]
        return _ShardPieces(columns, sample.astype(np.int64))


class PieceReader:
    """Reads and encodes pieces. Picklable; every process opens its own files."""

    def __init__(
        self, sources: Sequence[Source], *, tables: Sequence[PieceTable], encoder: Encoder
    ) -> None:
        assert [table.name for table in tables] == [source.name for source in sources]
        self._sources, self._tables, self._encoder = tuple(sources), tuple(tables), encoder
        self._readers = tuple(ShardReader(source) for source in sources)
        self._kept: OrderedDict[tuple[int, int, int], Example] = OrderedDict()

    def origin(self, source: int, piece: int) -> Origin:
        """Where a piece's sample lies."""
        shard, row, _, _ = self._tables[source].locate(piece)
        return self._origin(source, shard, row)

    def read_piece(self, source: int, piece: int) -> Example:
        """The piece, encoded, with the stored bytes of its images (not decoded).

        source: number of the source in the recipe. Raises RecordFault when the record cannot be
        used, DataError when the shard has changed or the token table does not fit it.
        """
        shard, row, start, tokens = self._tables[source].locate(piece)
        opened, reader = self._sources[source], self._readers[source]
        members = opened.index(shard).members(row)
        whole = self._whole(source, shard, row)
        example = self._encoder.part(whole, start=start, tokens=tokens)
        if len(example.ids) != tokens:
            raise DataError(
                f"{example.origin}: the token table says {tokens} tokens, encoding gave "
                f"{len(example.ids)}; delete the folder of token tables and run: "
                f"{PREPARE_COMMAND}"
            )
        by_name = {member.extension: member for member in members}
        images = tuple(
            replace(image, data=reader.read(shard, by_name[image.member]))
            for image in example.images
        )
        return replace(example, images=images)

    def _whole(self, source: int, shard: int, row: int) -> Example:
        """The encoded sample without its images' bytes; kept where it is longer than a piece."""
        place = (source, shard, row)
        if place in self._kept:
            self._kept.move_to_end(place)
            return self._kept[place]
        opened, reader = self._sources[source], self._readers[source]
        sample = parse_record(
            opened.index(shard).members(row),
            origin=self._origin(source, shard, row),
            kind=opened.config.kind,
            fields=opened.config.fields,
            read=lambda member: reader.read(shard, member),
        )
        whole = self._encoder.encode(sample, learn=opened.config.learn)
        if len(whole.ids) > self._encoder.rules.sequence_length:
            self._kept[place] = whole
            if len(self._kept) > KEPT_EXAMPLES:
                self._kept.popitem(last=False)
        return whole

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict()}

    def _origin(self, source: int, shard: int, row: int) -> Origin:
        opened = self._sources[source]
        key = opened.index(shard).key(row)
        return Origin(source=opened.name, shard=opened.shards[shard].name, key=key)


def check_modalities(tables: Sequence[PieceTable]) -> None:
    """Raise DataError when a shard holds records of a modality that no leaf over it draws."""
    drawn = {(shard.resolve(), table.modality) for table in tables for shard in table.source.shards}
    for table in tables:
        (other,) = set(Modality) - {table.modality}
        missed = [
            count
            for shard, count in zip(table.source.shards, table.other_samples, strict=True)
            if count and (shard.resolve(), other) not in drawn
        ]
        if missed:
            raise DataError(
                f"source {table.name!r} draws {table.num_samples} {table.modality.value} samples "
                f"of {table.source.config.path}, but {len(missed)} of its shards hold "
                f"{sum(missed)} {other.value} samples that no source draws; add a source over the "
                f"same path with modality={other.value} (weight 0 leaves them out knowingly)"
            )
