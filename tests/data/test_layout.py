from __future__ import annotations

from pathlib import Path

import pytest
from shard_makers import write_tar

from vltrain.data.config import KeyRule
from vltrain.data.layout import expand_braces, find_shards, image_order, split_member
from vltrain.errors import DataError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("000.png", ("000", "png")),
        ("a/b.0.PNG", ("a/b", "0.png")),
        ("a.b/c.jpg", ("a.b/c", "jpg")),
        ("folder/", None),
        (".hidden", None),
        ("README", None),
        ("a.b/c", None),
    ],
)
def test_member_names_are_split_as_webdataset_does(name: str, expected: object) -> None:
    from webdataset.tariterators import base_plus_ext

    assert split_member(name, keys=KeyRule.first_dot) == expected
    prefix, suffix = base_plus_ext(name)
    assert (prefix and (prefix, str(suffix).lower())) == expected


@pytest.mark.parametrize(
    ("name", "last_dot", "image_number"),
    [
        ("img.001.JPG", ("img.001", "jpg"), ("img", "001.jpg")),
        ("v1.2/a.b.0.png", ("v1.2/a.b.0", "png"), ("v1.2/a.b", "0.png")),
        ("a.b.0.json", ("a.b.0", "json"), ("a.b.0", "json")),
        ("a.png", ("a", "png"), ("a", "png")),
        (".0.png", (".0", "png"), (".0", "png")),
        ("README", None, None),
        (".txt", None, None),
    ],
)
def test_keys_with_dots(name: str, last_dot: object, image_number: object) -> None:
    assert split_member(name, keys=KeyRule.last_dot) == last_dot
    assert split_member(name, keys=KeyRule.image_number) == image_number


def test_images_are_ordered_by_number() -> None:
    assert sorted(["10.png", "2.png", "png"], key=image_order) == ["png", "2.png", "10.png"]


def test_braces() -> None:
    assert expand_braces("x-{008..010}.tar") == ["x-008.tar", "x-009.tar", "x-010.tar"]
    assert expand_braces("{a,b}/{1..2}.tar") == ["a/1.tar", "a/2.tar", "b/1.tar", "b/2.tar"]
    with pytest.raises(DataError, match="open brace"):
        expand_braces("x-{000..001.tar")
    with pytest.raises(DataError, match="no range of numbers"):
        expand_braces("x-{3..1}.tar")


def test_folder_file_and_pattern_find_the_same(tmp_path: Path) -> None:
    shards = [write_tar(tmp_path / f"s-{i}.tar", []) for i in range(3)]
    (tmp_path / "notes.txt").write_text("x")
    assert find_shards("s", str(tmp_path)) == shards
    assert find_shards("s", str(tmp_path / "s-{0..2}.tar")) == shards
    assert find_shards("s", str(tmp_path / "s-*.tar")) == shards
    assert find_shards("s", str(shards[1])) == [shards[1]]


def test_missing_shards_are_named_with_what_to_do(tmp_path: Path) -> None:
    write_tar(tmp_path / "s-0.tar", [])
    with pytest.raises(DataError, match=r"source 'x': 2 of 3 shard names match no file: .*s-1"):
        find_shards("x", str(tmp_path / "s-{0..2}.tar"))
    with pytest.raises(
        DataError, match=r"match no file: .*/nothing.*path=.* of x under data\.sources"
    ):
        find_shards("x", str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty/\*\.tar"):
        find_shards("x", str(tmp_path / "empty"))
    with pytest.raises(DataError, match="names a shard twice"):
        find_shards("x", str(tmp_path / "s-{0,0}.tar"))


def test_compressed_shards_are_refused_and_never_skipped(tmp_path: Path) -> None:
    write_tar(tmp_path / "s-0.tar", [])
    (tmp_path / "s-1.tar.gz").write_bytes(b"\x1f\x8b")
    for path in (tmp_path, tmp_path / "s-1.tar.gz", tmp_path / "s-*"):
        with pytest.raises(DataError, match=r"s-1\.tar\.gz is compressed.*gunzip"):
            find_shards("x", str(path))


def test_links_to_nothing_and_folders_are_not_passed_over(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.txt", b"x")])
    (tmp_path / "notes.tar").mkdir()  # in a folder, folders are none of ours
    assert find_shards("s", str(tmp_path)) == [tmp_path / "a.tar"]
    with pytest.raises(DataError, match=r"source 's': .*notes\.tar is a folder; mend or remove it"):
        find_shards("s", str(tmp_path / "*.tar"))
    (tmp_path / "notes.tar").rmdir()
    (tmp_path / "b.tar").symlink_to(tmp_path / "gone.tar")
    for path in (tmp_path, tmp_path / "*.tar"):
        with pytest.raises(DataError, match=r"b\.tar is a link to a file that is gone"):
            find_shards("s", str(path))


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [("a.txt", b"x")])
    shard.rename(tmp_path / b"caf\xe9.tar".decode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"the name of the shard '.*caf\\udce9\.tar' is not UTF-8"):
        find_shards("s", str(tmp_path))
