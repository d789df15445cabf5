"""Writes one recipe's splits as shards: ``<root>/<name>/{train,held_out}/<name>-000000.tar``.

Beside the two folders lies the recipe's ``card.json`` (card, and what was written), written last;
each folder has the writer's own, with the digests of its shards. A set whose card is unchanged and
whose shards are all there in full size is left alone: the second ``make_data`` takes no time. A
recipe that changes what it makes must therefore raise its card's ``revision``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from data_recipes.card import Card
from data_recipes.split import Split
from vltrain.data.layout import CARD_NAME
from vltrain.data.writer import ShardCard, ShardRecord, write_shards
from vltrain.errors import DataError

SAMPLES_PER_SHARD = 1000


class Recipe(Protocol):
    """What a recipe module offers."""

    def card(self) -> Card: ...

    def samples(self, split: Split, *, limit: int | None = None) -> Iterator[ShardRecord]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What lies in ``directory`` now. ``changed``: False where nothing had to be written."""

    card: Card
    directory: Path
    samples: dict[Split, int]
    size_bytes: int
    changed: bool


def write_recipe(
    recipe: Recipe,
    root: Path,
    *,
    limit: int | None = None,
    samples_per_shard: int = SAMPLES_PER_SHARD,
) -> Written:
    """Write every split of ``recipe`` under ``root``, or nothing where the same is there already.

    ``limit``: at most so many records of each split. Raises DataError when the counts are not the
    card's (nothing is replaced then) and where the writer or the recipe does.
    """
    card = recipe.card().limited(limit)
    directory = root / card.name
    written = _already_there(card, directory)
    if written is not None:
        return written
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / CARD_NAME).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{directory} cannot be written: {error}; name another folder") from error
    samples: dict[Split, int] = {}
    for split in card.expected:
        records = _counted(recipe.samples(split, limit=limit), card=card, split=split)
        result = write_shards(
            records,
            directory / split.value,
            kind=card.kind,
            samples_per_shard=samples_per_shard,
            card=_shard_card(card, split),
            prefix=card.name,
        )
        samples[split] = result.samples
    _write_card(card, directory, samples=samples)
    return Written(
        card=card,
        directory=directory,
        samples=samples,
        size_bytes=_size_bytes(directory, card),
        changed=True,
    )


def _counted(records: Iterable[ShardRecord], *, card: Card, split: Split) -> Iterator[ShardRecord]:
    """Pass records on and check their number at the end, while the folder is not yet in place."""
    number = 0
    for record in records:
        yield record
        number += 1
    card.check(split, number)


def _shard_card(card: Card, split: Split) -> ShardCard:
    return ShardCard(
        name=card.name,
        description=f"{split.value} split. {card.notes}".strip(),
        source=f"{card.source} ({card.version})",
        licence=card.licence,
        attribution=card.attribution,
        synthetic=card.synthetic,
    )


def _write_card(card: Card, directory: Path, *, samples: dict[Split, int]) -> None:
    content = {**card.to_json(), "samples": {s.value: number for s, number in samples.items()}}
    aside = directory / f".{CARD_NAME}.writing"
    aside.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, directory / CARD_NAME)


def _already_there(card: Card, directory: Path) -> Written | None:
    """What was written before, if the card is the same and every shard has its recorded size."""
    if not (directory / CARD_NAME).is_file():
        return None
    content = _read_json(directory / CARD_NAME)
    samples = content.pop("samples", {})
    if content != card.to_json():
        return None
    for split in card.expected:
        folder = directory / split.value
        if not (folder / CARD_NAME).is_file():
            return None
        for shard in _read_json(folder / CARD_NAME)["shards"]:
            path = folder / shard["name"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                return None
    return Written(
        card=card,
        directory=directory,
        samples={split: samples[split.value] for split in card.expected},
        size_bytes=_size_bytes(directory, card),
        changed=False,
    )


def _size_bytes(directory: Path, card: Card) -> int:
    folders = [directory / split.value for split in card.expected]
    return sum(tar.stat().st_size for folder in folders for tar in folder.glob("*.tar"))


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
