"""Writing while training goes on, with a store whose disk is held back by hand."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoint_samples import fragments, manifest, store

from vltrain.checkpoint import store as store_module
from vltrain.checkpoint.background import BackgroundWriter
from vltrain.checkpoint.store import CheckpointStore
from vltrain.engine.fragments import Fragment, FragmentKind
from vltrain.errors import CheckpointError


class Disk:
    """A store of which no file is written before ``free`` is set; ``error``: then it is full."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free, self.error = threading.Event(), False
        self.store = store(folder)
        self.writer = BackgroundWriter(self.store, group=None)
        self.waited = 0
        write_text = store_module.write_text

        def held(path: Path, text: str):
            assert self.free.wait(timeout=120)
            if self.error:
                raise OSError(28, "No space left on device")
            return write_text(path, text)

        monkeypatch.setattr(store_module, "write_text", held)

    def save(self, step: int, values: Iterator[Fragment] | None = None) -> None:
        self.writer.save(
            manifest(step),
            values or fragments(),
            tensor_digests={},
            texts={"config.yaml": "a: 1"},
            rng={"cpu": torch.arange(3, dtype=torch.uint8)},
            waiting=self.wait,
        )

    def wait(self) -> None:
        self.waited += 1
        self.free.set()


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(tmp_path, monkeypatch)


def newest(checkpoints: CheckpointStore) -> int:
    found = checkpoints.newest()
    assert found is not None
    return found.manifest.step


def test_training_goes_on_and_the_snapshot_is_what_was_then(disk: Disk) -> None:
    weight, copying, waited = torch.arange(6.0), threading.Event(), []

    def live() -> Iterator[Fragment]:
        assert copying.wait(timeout=120)
        for kind in (FragmentKind.master, FragmentKind.exp_avg, FragmentKind.exp_avg_sq):
            yield Fragment(name="adaptor.weight", kind=kind, offset=0, values=weight.clone())

    def waiting() -> None:
        waited.append("copy")
        copying.set()

    disk.writer.copied(waiting=waiting)  # no save, nothing to wait for
    disk.save(10, live())
    assert waited == []  # the next step's forward and backward, while nothing is copied yet
    disk.writer.copied(waiting=waiting)
    assert waited == ["copy"]
    weight.fill_(-1.0)  # its update, while nothing is written yet
    assert disk.store.steps() == []
    assert not disk.writer.failed()
    disk.free.set()
    disk.writer.settle(waiting=disk.wait)
    found = disk.store.newest()
    assert found is not None
    read = found.reader()("adaptor.weight", FragmentKind.master, 0, 6)
    assert read.tolist() == [0, 1, 2, 3, 4, 5]
    assert (found.directory / "config.yaml").read_text() == "a: 1"
    states = found.rng(0, world=1)
    assert states is not None
    assert states["cpu"].tolist() == [0, 1, 2]


def test_a_second_save_waits_for_the_first(disk: Disk) -> None:
    disk.save(10)
    disk.save(20)  # its waiting frees the disk
    assert disk.waited >= 1
    assert disk.store.steps()[0] == 10
    disk.writer.settle(waiting=disk.wait)
    assert disk.store.steps() == [10, 20]
    disk.writer.settle(waiting=disk.wait)  # nothing is left to wait for


def test_an_error_shows_as_failed_and_is_raised_once_asked(disk: Disk) -> None:
    disk.free.set()
    disk.save(10)
    disk.writer.settle(waiting=disk.wait)
    disk.error = True
    disk.save(20)
    with pytest.raises(CheckpointError, match=r"step 20 could not be written.*No space left"):
        disk.writer.settle(waiting=disk.wait)
    assert newest(disk.store) == 10
    disk.save(30)
    while not disk.writer.failed():
        pass
    with pytest.raises(CheckpointError, match="step 30"):
        disk.save(40)


def test_an_error_of_ours_is_no_success(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    monkeypatch.setattr(disk.store, "save", lambda *a, **k: 1 / 0)
    disk.save(10)
    with pytest.raises(CheckpointError, match="an error of ours"):
        disk.writer.settle(waiting=disk.wait)


def test_a_copy_that_fails_stops_nobody_from_going_on(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Iterator[Fragment]:
        raise MemoryError
        yield

    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    disk.save(10, broken())
    disk.writer.copied(waiting=disk.wait)
    with pytest.raises(CheckpointError, match="an error of ours"):
        disk.writer.settle(waiting=disk.wait)


def test_closing_lets_the_last_write_end_and_says_where_it_did_not(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    disk.writer.close()
    disk.save(10)
    disk.free.set()
    disk.writer.close()
    assert newest(disk.store) == 10
    disk.error = True
    disk.writer.settle(waiting=disk.wait)
    disk.save(20)
    with caplog.at_level(logging.ERROR):
        disk.writer.close()
    assert "the last checkpoint is not written: The checkpoint of step 20" in caplog.text
