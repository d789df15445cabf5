"""Shards behind URLs: a store in memory that fails as it is told, and HTTP on loopback."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import yaml
from fsspec.implementations.memory import MemoryFileSystem
from http_store import HttpStore, serving
from shard_makers import byte_encoder, png, write_tar

from vltrain.batch import Modality, RecordKind
from vltrain.data.config import FaultConfig, RemoteConfig, SourceConfig
from vltrain.data.layout import RemoteShard
from vltrain.data.pieces import PieceReader, PieceTable
from vltrain.data.prepare import prepare_sources
from vltrain.data.propose import propose_source
from vltrain.data.remote import RemoteStore, source_shards
from vltrain.data.report import PrepareReport
from vltrain.data.shardfile import mapped
from vltrain.data.sources import open_source
from vltrain.errors import ConfigError, DataError

KIB = 1 / 1024  # of chunk_mib


class FlakyFileSystem(MemoryFileSystem):
    """Memory, with failures to come and requests that were made."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    cachable = False
    failures: ClassVar[list[Exception]] = []
    asked: ClassVar[list[tuple[int | None, int | None]]] = []
    short = 0

    @classmethod
    def _strip_protocol(cls, path):
        return path.removeprefix("flaky://")

    def cat_file(self, path, start=None, end=None, **kwargs) -> bytes:
        FlakyFileSystem.asked.append((start, end))
        if FlakyFileSystem.failures:
            raise FlakyFileSystem.failures.pop(0)
        data = super().cat_file(path, start=start, end=end, **kwargs)
        return data[: len(data) - FlakyFileSystem.short]

    def info(self, path, **kwargs):
        if not self.store:
            raise FileNotFoundError(path)
        return {**super().info(path, **kwargs), "ETag": "v1"}


fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)


@pytest.fixture(autouse=True)
def fresh_store() -> None:
    FlakyFileSystem.store.clear()
    FlakyFileSystem.failures, FlakyFileSystem.asked, FlakyFileSystem.short = [], [], 0


def store(tmp_path: Path, **changes: Any) -> RemoteStore:
    values: dict[str, Any] = {
        "schemes": ["flaky", "http"],
        "cache_dir": str(tmp_path / "cache"),
        "cache_gib": 64 / 2**20,
        "chunk_mib": KIB,
        "read_ahead": 0,
        "tries": 3,
        "backoff_seconds": 0.01,
        "timeout_seconds": 5.0,
    }
    return RemoteStore(RemoteConfig(**{**values, **changes}))


def put(data: bytes, name: str = "/x.tar") -> RemoteShard:
    fsspec.filesystem("flaky").pipe_file(name, data)
    return RemoteShard(f"flaky://{name}")


BODY = bytes(i % 251 for i in range(5000))


def test_stretches_over_chunks(tmp_path: Path) -> None:
    shard, remote = put(BODY), store(tmp_path)
    file = remote.stat(shard)
    assert file[0] == 5000
    assert remote.read(shard, 1000, 100, file=file) == BODY[1000:1100]
    assert remote.read(shard, 4990, 10, file=file) == BODY[4990:]
    assert FlakyFileSystem.asked == [(0, 1024), (1024, 2048), (4096, 5000)]
    assert remote.read(shard, 5, 2000, file=file) == BODY[5:2005]
    again = pickle.loads(pickle.dumps(remote))  # as a worker gets it  # noqa: S301
    assert again.read(shard, 4096, 904, file=file) == BODY[4096:]
    assert len(FlakyFileSystem.asked) == 3
    assert b"".join(remote.chunks(shard, file=file)) == BODY


def test_runs_with_chunks_of_another_size_share_the_cache(tmp_path: Path) -> None:
    shard = put(BODY)
    for chunk_mib in (KIB, 2 * KIB, KIB / 2):
        remote = store(tmp_path, chunk_mib=chunk_mib)
        file = remote.stat(shard)
        assert remote.read(shard, 600, 3000, file=file) == BODY[600:3600]


def test_read_ahead_fetches_what_comes_next(tmp_path: Path) -> None:
    shard, remote = put(BODY), store(tmp_path, read_ahead=2)
    file = remote.stat(shard)
    remote.read(shard, 0, 10, file=file)
    wanted = {(0, 1024), (1024, 2048), (2048, 3072)}
    deadline = time.monotonic() + 60
    while set(FlakyFileSystem.asked) != wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(FlakyFileSystem.asked) == wanted
    while len(list(tmp_path.glob("cache/*/*.chunk"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    FlakyFileSystem.failures = [ConnectionError("gone")] * 9
    assert remote.read(shard, 1500, 1000, file=file) == BODY[1500:2500]


def test_failures_are_borne_and_then_end_the_run(tmp_path: Path) -> None:
    shard, remote = put(BODY), store(tmp_path)
    file = remote.stat(shard)
    FlakyFileSystem.failures = [ConnectionError("reset"), TimeoutError("late")]
    assert remote.read(shard, 0, 10, file=file) == BODY[:10]
    FlakyFileSystem.failures = [ConnectionError("reset by peer")] * 3
    with pytest.raises(DataError) as caught:
        remote.read(shard, 2048, 10, file=file)
    message = str(caught.value)
    assert message.startswith("flaky:///x.tar cannot be read: the store failed 3 times in 0 s")
    assert "last with ConnectionError: reset by peer" in message
    assert "the same command goes on" in message
    assert not FlakyFileSystem.failures


def test_waits_double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("vltrain.data.remote.time.sleep", waited.append)
    shard, remote = put(BODY), store(tmp_path, tries=9, backoff_seconds=1.0)
    file = remote.stat(shard)
    FlakyFileSystem.failures = [ConnectionError("reset")] * 8
    remote.read(shard, 0, 10, file=file)
    assert waited == [1, 2, 4, 8, 16, 32, 60, 60]


def test_what_is_not_there_is_not_asked_for_again(tmp_path: Path) -> None:
    shard, remote = put(BODY), store(tmp_path)
    file = remote.stat(shard)
    for error in (FileNotFoundError("/x.tar"), PermissionError("no key")):
        FlakyFileSystem.failures = [error]
        asked = len(FlakyFileSystem.asked)
        with pytest.raises(DataError, match=rf"cannot be read: {type(error).__name__}"):
            remote.read(shard, 0, 10, file=file)
        assert len(FlakyFileSystem.asked) == asked + 1


def test_a_short_answer_is_a_failure(tmp_path: Path) -> None:
    shard, remote = put(BODY), store(tmp_path)
    file = remote.stat(shard)
    FlakyFileSystem.short = 1
    with pytest.raises(DataError, match="bytes 0 to 1024 came as 1023 bytes"):
        remote.read(shard, 0, 10, file=file)


def test_an_error_of_ours_is_not_tried_again(tmp_path: Path) -> None:
    shard, remote = put(BODY), store(tmp_path)
    file = remote.stat(shard)
    FlakyFileSystem.failures = [ZeroDivisionError("ours")]
    with pytest.raises(ZeroDivisionError):
        remote.read(shard, 0, 10, file=file)


def source(path: str, index_dir: Path | None) -> SourceConfig:
    return SourceConfig(
        path=path,
        kind=RecordKind.caption,
        modality=Modality.multimodal,
        index_dir=None if index_dir is None else str(index_dir),
    )


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("ftp://h/x.tar", r"ftp:// is not among data.remote.schemes=\['flaky', 'http'\]"),
        ("http://h/folder", "a store is not listed; name its shards"),
        ("http://h/x-*.tar", "a store is not listed"),
        ("http://h/{a,b}/x.tar", "names two shards of the same file name"),
    ],
)
def test_urls_that_are_refused(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        source_shards("s", source(path, tmp_path), remote=store(tmp_path))


def test_sources_that_are_refused(tmp_path: Path) -> None:
    config = source("http://h/x-{00..01}.tar", None)
    with pytest.raises(ConfigError, match="need index_dir, a local folder"):
        source_shards("s", config, remote=store(tmp_path))
    with pytest.raises(ConfigError, match="only local shards can be read here"):
        source_shards("s", config, remote=None)
    with pytest.raises(ConfigError, match="must hold at least four chunks"):
        store(tmp_path, cache_gib=2 / 2**20)
    with pytest.raises(ConfigError, match=r"data\.remote\.tries=0 .*: at least one try"):
        store(tmp_path, tries=0)
    with pytest.raises(ConfigError, match=r"backoff_seconds=-1: .* waits of 0 seconds or more"):
        store(tmp_path, backoff_seconds=-1)
    found = source_shards("s", source(config.path, tmp_path), remote=store(tmp_path))
    assert [shard.name for shard in found] == ["x-00.tar", "x-01.tar"]


def test_a_scheme_without_its_library(tmp_path: Path) -> None:
    remote = store(tmp_path, schemes=["nosuch"])
    with pytest.raises(ConfigError, match=r"nosuch:// need a library that is not installed"):
        remote.stat(RemoteShard("nosuch://h/x.tar"))


def shards(folder: Path, *, count: int = 2) -> None:
    for shard in range(count):
        members: list[tuple[str, bytes]] = []
        for n in range(8):
            members += [(f"{shard}{n}.png", png(40 + n)), (f"{shard}{n}.txt", b"a dog %d" % n)]
        write_tar(folder / f"x-{shard}.tar", members)


def prepare(config: SourceConfig, remote: RemoteStore, *, workers: int = 0) -> PrepareReport:
    return prepare_sources(
        {"s": config},
        encoder_for=lambda config: byte_encoder(),
        workers=workers,
        faults=FaultConfig(),
        remote=remote,
    )


def read_all(config: SourceConfig, remote: RemoteStore | None) -> list[tuple[str, bytes]]:
    opened = open_source("s", config, remote=remote)
    encoder = byte_encoder()
    table = PieceTable(opened, encoder_digest=encoder.digest)
    reader = PieceReader([opened], tables=[table], encoder=encoder)
    examples = [reader.read_piece(0, piece) for piece in range(table.num_pieces)]
    return [(str(e.origin), e.images[0].data) for e in examples]


def test_remote_shards_are_the_local_ones(tmp_path: Path) -> None:
    shards(tmp_path / "local")
    for path in sorted((tmp_path / "local").iterdir()):
        put(path.read_bytes(), f"/{path.name}")
    remote = store(tmp_path)
    config = source("flaky:///x-{0..1}.tar", tmp_path / "index")
    (report,) = prepare(config, remote).sources
    assert report.totals["multimodal"]["samples"] == 16
    local = source(str(tmp_path / "local"), None)
    prepare(local, remote)
    found = read_all(config, remote)
    assert found == read_all(local, None)
    assert len(found) == 16
    assert not list((tmp_path / "cache" / ".whole").iterdir())
    assert prepare(config, remote).sources[0].built_shards == 0
    tables = {
        PieceTable(open_source("s", c, remote=remote), encoder_digest=byte_encoder().digest).digest
        for c in (config, local)
    }
    assert len(tables) == 1  # where shards lie does not change the recipe


def test_a_whole_copy_has_no_name_that_could_outlive_its_process(tmp_path: Path) -> None:
    shard, remote = put(b"0123456789"), store(tmp_path)
    with mapped(shard, remote=remote) as data:
        assert data[:] == b"0123456789"
        assert list(remote.scratch().iterdir()) == []
    with (
        pytest.raises(DataError, match=r"is empty \(0 bytes\)"),
        mapped(put(b"", "/empty.tar"), remote=remote),
    ):
        pass


def test_a_shard_that_changed_is_refused(tmp_path: Path) -> None:
    shards(tmp_path / "local", count=1)
    data = (tmp_path / "local" / "x-0.tar").read_bytes()
    put(data, "/x-0.tar")
    remote = store(tmp_path)
    config = source("flaky:///x-0.tar", tmp_path / "index")
    prepare(config, remote)
    put(data + bytes(10240), "/x-0.tar")
    with pytest.raises(DataError, match=r"the index of flaky:///x-0.tar is stale"):
        read_all(config, remote)


def test_a_source_is_proposed_from_its_beginning(tmp_path: Path) -> None:
    members: list[tuple[str, bytes]] = []
    for n in range(400):
        members += [(f"{n}.png", png(40)), (f"{n}.txt", b"a dog")]
    write_tar(tmp_path / "x.tar", members)
    size = (tmp_path / "x.tar").stat().st_size
    shard = put((tmp_path / "x.tar").read_bytes())
    remote = store(tmp_path, chunk_mib=1 / 32, cache_gib=2 / 1024)
    found = propose_source([shard], remote=remote)
    assert found is not None
    assert (found.kind, found.fits, found.looked_at) == (RecordKind.caption, 100, 100)
    assert "index_dir: .vltrain/pets" in found.yaml(name="pets", path=shard.url)
    assert "index_dir" not in found.yaml(name="pets", path="/pets")
    fetched = {end for _, end in FlakyFileSystem.asked if end is not None}
    assert 0 < max(fetched) < size / 2
    assert len(fetched) == len(FlakyFileSystem.asked)  # nothing twice

    put(b"", "/empty.tar")
    with pytest.raises(DataError, match=r"empty\.tar is empty"):
        propose_source([RemoteShard("flaky:///empty.tar")], remote=remote)


@pytest.fixture
def http(tmp_path: Path):
    pytest.importorskip("aiohttp", reason="shards over http need fsspec[http]")
    shards(tmp_path / "served")
    with serving(tmp_path / "served") as found:
        yield found


def http_source(http: HttpStore, tmp_path: Path) -> SourceConfig:
    return source(f"{http.url}/x-{{0..1}}.tar", tmp_path / "index")


def test_http(http: HttpStore, tmp_path: Path) -> None:
    config, remote = http_source(http, tmp_path), store(tmp_path, read_ahead=1)
    (report,) = prepare(config, remote, workers=2).sources
    assert report.totals["multimodal"]["samples"] == 16
    http.ranges.clear()
    found = read_all(config, remote)
    local = source(str(tmp_path / "served"), None)
    prepare(local, remote)
    assert found == read_all(local, None)
    assert all(end - start <= 1024 for _, start, end in http.ranges)
    before = len(http.ranges)
    assert read_all(config, store(tmp_path)) == found  # another process of the node
    assert len(http.ranges) <= before + 1  # at most what was being read ahead


def test_http_source_is_proposed(http: HttpStore) -> None:
    script = Path(__file__).resolve().parents[2] / "launch" / "propose_source.py"
    url = f"{http.url}/x-{{0..1}}.tar"
    result = subprocess.run(
        [sys.executable, str(script), url, "pets"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    proposed = {"kind": "caption", "modality": "multimodal", "index_dir": ".vltrain/pets"}
    assert yaml.safe_load(result.stdout) == {"sources": {"pets": {"path": url, **proposed}}}


def test_http_cut_off_in_the_middle(http: HttpStore, tmp_path: Path) -> None:
    config, remote = http_source(http, tmp_path), store(tmp_path)
    http.cut = 2
    assert prepare(config, remote).sources[0].totals["multimodal"]["samples"] == 16
    http.cut = 2
    assert len(read_all(config, remote)) == 16
    assert http.cut == 0
    http.cut = 99
    message = rf"{http.url}/x-0\.tar cannot be read: the store failed 3 times"
    with pytest.raises(DataError, match=message):
        read_all(config, store(tmp_path, cache_dir=str(tmp_path / "fresh")))
    assert http.cut == 96


def test_http_store_that_is_gone(http: HttpStore, tmp_path: Path) -> None:
    config, remote = http_source(http, tmp_path), store(tmp_path)
    prepare(config, remote)
    http.down = True
    with pytest.raises(DataError, match=r"x-0.tar cannot be read: the store failed 3 times"):
        read_all(config, remote)
    http.down, http.gone = False, True
    with pytest.raises(DataError, match=r"x-0.tar cannot be read: FileNotFoundError"):
        read_all(config, remote)


def test_http_with_another_version_or_without_ranges(http: HttpStore, tmp_path: Path) -> None:
    config, remote = http_source(http, tmp_path), store(tmp_path)
    prepare(config, remote)
    http.tag = "2"
    with pytest.raises(DataError, match=r"x-0.tar is stale"):
        read_all(config, remote)
    http.no_ranges = True
    with pytest.raises(DataError, match="the server does not serve parts of files"):
        prepare(config, remote)
