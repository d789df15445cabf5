"""Writing a recipe: layout, counts, what is left alone, and stock webdataset reading it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import webdataset

from data_recipes.card import Card, exactly
from data_recipes.split import Split
from data_recipes.write import write_recipe
from vltrain.batch import RecordKind
from vltrain.data.writer import ShardRecord, text_record
from vltrain.errors import DataError


class Recipe:
    """Five train records and two held-out ones, or as told."""

    def __init__(self, *, train: int = 5, held_out: int = 2, revision: int = 1) -> None:
        self.number = {Split.train: train, Split.held_out: held_out}
        self.revision = revision
        self.runs = 0

    def card(self) -> Card:
        return Card(
            name="toy",
            source="this test",
            version="1",
            licence="MIT",
            kind=RecordKind.text,
            synthetic=True,
            expected={Split.train: exactly(5), Split.held_out: exactly(2)},
            revision=self.revision,
        )

    def samples(self, split: Split, *, limit: int | None = None) -> Iterator[ShardRecord]:
        self.runs += 1
        for i in range(min(self.number[split], limit or 99)):
            yield text_record(f"{split.value}-{i}", text=f"text {i} of revision {self.revision}")


def read(path: Path) -> list[dict[str, object]]:
    return list(webdataset.WebDataset(str(path), shardshuffle=False))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/toy cannot be written: .*; name another folder"):
        write_recipe(Recipe(), tmp_path / "file")


def test_layout_and_stock_reading(tmp_path: Path) -> None:
    written = write_recipe(Recipe(), tmp_path, samples_per_shard=3)
    assert written.samples == {Split.train: 5, Split.held_out: 2}
    tars = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.tar"))
    assert tars == [
        "toy/held_out/toy-000000.tar",
        "toy/train/toy-000000.tar",
        "toy/train/toy-000001.tar",
    ]
    second = read(tmp_path / "toy/train/toy-000001.tar")
    assert [r["__key__"] for r in second] == ["train-3", "train-4"]
    assert second[0]["txt"] == b"text 3 of revision 1"
    card = json.loads((tmp_path / "toy/card.json").read_text())
    assert card["samples"] == {"train": 5, "held_out": 2}
    assert card["synthetic"] is True


def test_same_card_is_left_alone(tmp_path: Path) -> None:
    assert write_recipe(Recipe(), tmp_path).changed
    again = Recipe()
    written = write_recipe(again, tmp_path)
    assert not written.changed
    assert written.samples == {Split.train: 5, Split.held_out: 2}
    assert again.runs == 0


def test_another_revision_or_limit_is_written_again(tmp_path: Path) -> None:
    write_recipe(Recipe(), tmp_path)
    assert write_recipe(Recipe(revision=2), tmp_path).changed
    assert read(tmp_path / "toy/train/toy-000000.tar")[0]["txt"] == b"text 0 of revision 2"
    limited = write_recipe(Recipe(revision=2), tmp_path, limit=1)
    assert limited.changed
    assert limited.samples == {Split.train: 1, Split.held_out: 1}


def test_a_missing_or_cut_shard_is_written_again(tmp_path: Path) -> None:
    write_recipe(Recipe(), tmp_path)
    shard = tmp_path / "toy/train/toy-000000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:1024])
    assert write_recipe(Recipe(), tmp_path).changed
    assert shard.read_bytes() == whole
    shard.unlink()
    assert write_recipe(Recipe(), tmp_path).changed
    assert shard.read_bytes() == whole


@pytest.mark.parametrize("number", [4, 6])
def test_a_wrong_count_replaces_nothing(tmp_path: Path, number: int) -> None:
    write_recipe(Recipe(), tmp_path)
    before = (tmp_path / "toy/train/toy-000000.tar").read_bytes()
    with pytest.raises(DataError, match=f"toy/train: {number} records written"):
        write_recipe(Recipe(train=number, revision=2), tmp_path)
    assert (tmp_path / "toy/train/toy-000000.tar").read_bytes() == before
    assert write_recipe(Recipe(), tmp_path).changed  # no card of the failed attempt is left
