"""Held-out records as samples, image bytes included.

In: an opened source. Out: at most so many samples, evenly spread over the source. Spread, not the
first so many: shards are often written class by class, and the first records would then be of one
class. The same records are read every time. Cost: a few reads per record.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from vltrain.batch import Modality, Origin, Sample
from vltrain.data.reader import ShardReader
from vltrain.data.records import parse_record
from vltrain.data.sources import Source
from vltrain.errors import DataError, RecordFault

_log = logging.getLogger(__name__)


def read_samples(source: Source, *, limit: int) -> tuple[list[Sample], int]:
    """At most ``limit`` samples of the source's modality, and the number of records that could not
    be read. Raises DataError where nothing is left."""
    first_row = np.cumsum([0, *(index.samples for index in source.indexes)])
    total = int(first_row[-1])
    rows = np.unique(np.linspace(0, total - 1, num=min(limit, total)).round().astype(np.int64))
    reader = ShardReader(source)
    samples: list[Sample] = []
    faults = 0
    for row in rows:
        shard = int(np.searchsorted(first_row, row, side="right")) - 1
        try:
            sample = _read(source, reader, shard=shard, row=int(row - first_row[shard]))
        except RecordFault as fault:
            _log.warning("held out: a record of %s left out: %s", source.name, fault)
            faults += 1
            continue
        modality = Modality.multimodal if sample.images else Modality.language
        if modality is source.config.modality:
            samples.append(sample)
    if not samples:
        raise DataError(
            f"data.held_out.{source.name}: none of {len(rows)} records is a usable "
            f"{source.config.modality.value} record ({faults} could not be read); check path, kind "
            "and modality"
        )
    return samples, faults


def _read(source: Source, reader: ShardReader, *, shard: int, row: int) -> Sample:
    index = source.index(shard)
    members = index.members(row)
    sample = parse_record(
        members,
        origin=Origin(source=source.name, shard=source.shards[shard].name, key=index.key(row)),
        kind=source.config.kind,
        fields=source.config.fields,
        read=lambda member: reader.read(shard, member),
    )
    by_name = {member.extension: member for member in members}
    images = tuple(
        replace(image, data=reader.read(shard, by_name[image.member])) for image in sample.images
    )
    return replace(sample, images=images)
