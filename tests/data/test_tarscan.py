from __future__ import annotations

import gzip
import io
import itertools
import tarfile
from pathlib import Path

import pytest
from shard_makers import write_tar

from vltrain.data.tarscan import scan_tar
from vltrain.errors import DataError

LONG = "f" * 60 + "/" + "g" * 120 + ".txt"


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_finds(tmp_path: Path, format: int) -> None:
    names = ["a.txt", "d/e/b.0.png", "f" * 90 + "/" + "g" * 60 + ".txt", "empty.txt"]
    if format != tarfile.USTAR_FORMAT:
        names += [LONG, "ü.txt"]
    shard = tmp_path / "s.tar"
    with tarfile.open(shard, "w", format=format) as tar:
        for i, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 0 if name == "empty.txt" else 500 * (i + 1)
            info.mtime = 1.5 if format == tarfile.PAX_FORMAT else 1
            tar.addfile(info, io.BytesIO(bytes([i]) * info.size))
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "a.txt"
        tar.addfile(link)
    with tarfile.open(shard) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar if m.isreg()]
    found = [(m.name, m.offset, m.size) for m in scan_tar(shard.read_bytes(), shard=shard)]
    assert found == expected
    assert len(found) == len(names)


def check(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(scan_tar(data, shard=Path("x/s.tar")))


def test_everything_but_a_whole_plain_tar_is_refused(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "s.tar", [("a.txt", b"x" * 600), ("b.txt", b"y")]).read_bytes()
    check(b"this is no tar" * 100, "s.tar is not a tar: it starts with b'this is no t'")
    check(gzip.compress(whole) + bytes(512), "s.tar is compressed.*gunzip")
    check(whole[:700], r"truncated: it has 700 bytes and 'a\.txt' needs bytes 512 to 1112")
    check(whole[:1536], "truncated: it has 1536 bytes and no end mark at byte 1536")
    check(whole[:1600], "truncated: it has 1600 bytes and no end mark at byte 1536")
    check(whole + whole, "holds data after its end mark")
    damaged = bytearray(whole)
    damaged[1540] ^= 1
    check(bytes(damaged), "damaged: no valid tar header at byte 1536")


@pytest.mark.parametrize("size", ["-1536", "-1", "x"])
def test_sizes_that_lead_backwards_are_refused(size: str) -> None:
    info = tarfile.TarInfo("a.txt")
    info.pax_headers = {"size": size}
    data = info.tobuf(tarfile.PAX_FORMAT) + bytes(1024)
    with pytest.raises(DataError, match=r"s\.tar is damaged: a tar header cannot be read"):
        list(itertools.islice(scan_tar(data, shard=Path("s.tar")), 9))  # -1536 is the tar's begin


@pytest.mark.parametrize("record", [b"0 a=b\n", b"-3 a=b\n", b"1", b"9", b"a=b\n"])
def test_damaged_extended_headers_are_refused(record: bytes) -> None:
    info = tarfile.TarInfo("PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    data = info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")
    check(data + tarfile.TarInfo("a.txt").tobuf() + bytes(1024), "damaged: a tar header cannot be")


def test_sparse_members_are_refused() -> None:
    info = tarfile.TarInfo("a.txt")
    info.type = tarfile.GNUTYPE_SPARSE
    check(info.tobuf() + bytes(1024), "sparse member")
