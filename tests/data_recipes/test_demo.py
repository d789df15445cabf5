"""Every demo set, written small and read by stock webdataset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import webdataset

from data_recipes.demo import RECIPES, write_demo
from data_recipes.split import Split
from vltrain.batch import RecordKind
from vltrain.errors import DataError

NAMES = [recipe.card().name for recipe in RECIPES]


def test_every_set_is_written_and_read_back(tmp_path: Path) -> None:
    written = list(write_demo(tmp_path, limit=3))
    assert [w.card.name for w in written] == NAMES
    for each in written:
        for split, number in each.samples.items():
            assert number == 3
            tar = each.directory / split.value / f"{each.card.name}-000000.tar"
            records = list(webdataset.WebDataset(str(tar), shardshuffle=False))
            assert len({r["__key__"] for r in records}) == 3
            for record in records:
                _check_members(record, each.card.kind)
    assert not (tmp_path / "shapes_caption" / Split.held_out.value).exists()


def _check_members(record: dict[str, bytes], kind: RecordKind) -> None:
    images = [name for name in record if name.rpartition(".")[2] in ("png", "jpg")]
    if kind is RecordKind.text:
        assert record["txt"].decode().strip()
        assert not images
    elif kind is RecordKind.caption:
        assert record["txt"].decode().strip()
        assert len(images) == 1
    else:
        content = json.loads(record["json"])
        text = json.dumps(content)
        marks = text.count("<image>") if kind is RecordKind.conversation else text.count(".png")
        assert marks == len(images)


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    names = ["digits_qa", "ocr_lines", "photos", "synthetic_shapes"]
    for folder in ("a", "b"):
        list(write_demo(tmp_path / folder, only=names, limit=2))
    tars = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.tar"))
    assert len(tars) == 8
    for tar in tars:
        assert (tmp_path / "a" / tar).read_bytes() == (tmp_path / "b" / tar).read_bytes()


def test_unknown_name_lists_the_choices(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no demo data set is called digit_qa; the choices are"):
        list(write_demo(tmp_path, only=["digit_qa"]))
