"""What can be wrong with shards, as launch/prepare.py meets it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from launching import DEMO, Finished, composed
from PIL import Image

InProcess = Callable[..., Finished]
Refused = Callable[..., str]


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (9, 7), "teal").save(stream, format="PNG")
    return stream.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def pairs(images: list[bytes]) -> dict[str, bytes]:
    """Caption records."""
    members = {}
    for number, image in enumerate(images):
        members |= {f"{number:04d}.png": image, f"{number:04d}.txt": b"a teal square"}
    return members


@cache
def alone() -> tuple[str, ...]:
    """Words that leave one source to prepare: no other is looked at, no worker started."""
    data = composed("stage=1", *DEMO).data
    return (
        *(f"~data.sources.{name}" for name in data.sources if name != "emoji"),
        *(f"~data.held_out.{name}" for name in data.held_out),
    )


def words(path: Path) -> tuple[str, ...]:
    return ("stage=1", *DEMO, f"data.sources.emoji.path={path}", *alone())


def test_a_file_that_is_no_image_is_excluded_and_listed(
    in_process: InProcess, tmp_path: Path
) -> None:
    write_tar(tmp_path / "a.tar", pairs([png()] * 30 + [b"this is no picture"]))
    ended = in_process(*words(tmp_path), script="prepare")
    assert ended.code == 0, ended.err
    assert "1 excluded (not_an_image 1)" in ended.out
    catalogs = list((tmp_path / ".vltrain").glob("tokens-*/catalog.json"))
    assert len(catalogs) == 1
    shard = json.loads(catalogs[0].read_text())["shards"]["a.tar"]
    assert [row["key"] for row in shard["excluded"]] == ["0030"]


def test_too_many_files_that_are_no_images(refused: Refused, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", pairs([png()] * 10 + [b"no picture"] * 3))
    said = refused(*words(tmp_path), "data.faults.grace=2", script="prepare")
    assert "source 'emoji': 3 of 13 records cannot be used" in said
    assert "{'not_an_image': 3}" in said
    assert "emoji:a.tar:0010: not_an_image" in said
    assert "data.faults.budget" in said


EMPTY = {"an empty file": b"", "an empty tar": bytes(10240)}


@pytest.mark.parametrize("what", EMPTY)
def test_an_empty_tar(refused: Refused, tmp_path: Path, what: str) -> None:
    (tmp_path / "a.tar").write_bytes(EMPTY[what])
    said = refused(*words(tmp_path), script="prepare")
    assert "source 'emoji'" in said
    assert "a.tar" in said
    assert "empty" in said


def test_what_is_no_tar(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"certainly no tar" * 100)
    said = refused(*words(tmp_path), script="prepare")
    assert "a.tar" in said
    assert "tar" in said


def test_no_shards(refused: Refused, tmp_path: Path) -> None:
    said = refused(*words(tmp_path), script="prepare")
    assert "match no file" in said
    assert "data recipe" in said
