"""Records that are both trained on and held out.

In: the drawn leaves and the held-out ones. Out: findings. Content is the proof: the same bytes.
The same key with other content is an error too where keys name things (a picture's caption in the
mix and a question about it held out); keys of digits alone are taken for counters, which every data
set begins anew, and only warned of. So is a held-out picture that is trained on with another text:
a benchmark's pictures are often older than the benchmark. Cost: 16 bytes per held-out sample and 8
per picture; the mix is gone through shard by shard.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vltrain.data.pieces import PieceTable
from vltrain.inspection.findings import Finding, Level
from vltrain.inspection.sample_digests import digests_of, joined

_EXAMPLES = 3
_KEYS_LOOKED_AT = 1000


def overlap_findings(
    drawn: Sequence[PieceTable], *, held_out: Sequence[PieceTable]
) -> list[Finding]:
    """One finding for each pair of a drawn and a held-out leaf that share contents, and one where
    they share keys alone."""
    held = []
    for table in held_out:
        shards = list(digests_of(table))
        pictures = np.concatenate([shard.images()[0] for shard in shards])
        held.append((table, *joined(shards), pictures))
    findings = []
    for table in drawn:
        counts = {other.name: _Shared() for other in held_out}
        for shard in digests_of(table):
            images, image_rows = shard.images()
            for other, keys, contents, pictures in held:
                same_content = np.isin(shard.contents, contents)
                same_key = np.isin(shard.keys, keys) & ~same_content
                shared = counts[other.name]
                shared.contents += int(same_content.sum())
                shared.content_names += shard.names(same_content, most=_EXAMPLES)
                shared.keys += int(same_key.sum())
                shared.key_names += shard.names(same_key, most=_EXAMPLES)
                pictured = image_rows[np.isin(images, pictures)]
                same_image = np.isin(shard.rows, pictured) & ~same_content
                shared.images += int(same_image.sum())
                shared.image_names += shard.names(same_image, most=_EXAMPLES)
                if not shared.keys_name_things and same_key.any():
                    first = np.flatnonzero(same_key)[:_KEYS_LOOKED_AT]
                    mask = np.zeros(len(same_key), dtype=bool)
                    mask[first] = True
                    texts = shard.key_texts(mask)
                    shared.keys_name_things = not all(text.isdecimal() for text in texts)
        for other in held_out:
            findings += counts[other.name].findings(table, other)
    return findings


class _Shared:
    """What a drawn and a held-out leaf share, counted in samples of the drawn one."""

    def __init__(self) -> None:
        self.contents = self.keys = self.images = 0
        self.content_names: list[str] = []
        self.image_names: list[str] = []
        self.key_names: list[str] = []
        self.keys_name_things = False

    def findings(self, table: PieceTable, other: PieceTable) -> list[Finding]:
        where = f"data.sources.{table.name} and data.held_out.{other.name}"
        found = []
        if self.contents:
            found.append(
                Finding(
                    level=Level.error,
                    check="overlap_content",
                    what=f"{self.contents:,} of {table.num_samples:,} training samples are held "
                    f"out too, byte for byte ({_some(self.content_names, self.contents)})",
                    where=where,
                    remedy="Take them out of one side: what is evaluated must not be trained on",
                )
            )
        if self.keys:
            found.append(self._key_finding(table, where))
        if self.images:
            some = _some(self.image_names, self.images)
            found.append(
                Finding(
                    level=Level.warning,
                    check="overlap_image",
                    what=f"{self.images:,} of {table.num_samples:,} training samples show a "
                    f"held-out picture, byte for byte, with another text ({some})",
                    where=where,
                    remedy="If what is held out shall be unseen, split by picture so that each is "
                    "on one side",
                )
            )
        return found

    def _key_finding(self, table: PieceTable, where: str) -> Finding:
        some = _some(self.key_names, self.keys)
        if self.keys_name_things:
            return Finding(
                level=Level.error,
                check="overlap_key",
                what=f"{self.keys:,} of {table.num_samples:,} training samples have the key of a "
                f"held-out one, with other content ({some})",
                where=where,
                remedy="If the key names the same thing (another text of one picture), split by "
                "key so that it is on one side; if it does not, rename one set's keys",
            )
        return Finding(
            level=Level.warning,
            check="overlap_key",
            what=f"{self.keys:,} keys are on both sides with other content ({some}); they are "
            "numbers alone, perhaps mere counters",
            where=where,
            remedy="If they number the same things, split by key so that each is on one side",
        )


def _some(names: list[str], count: int) -> str:
    return ", ".join(names[:_EXAMPLES]) + (", ..." if count > _EXAMPLES else "")
