from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import pytest

from vltrain.engine import start as starting
from vltrain.engine.config import EngineConfig
from vltrain.errors import EngineError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k not in VARIABLES})
    return monkeypatch


def test_plain_python_is_a_world_of_one(no_launcher: pytest.MonkeyPatch) -> None:
    starting.prepare_environment()
    assert [os.environ[v] for v in VARIABLES] == ["0", "1", "0", "127.0.0.1", "0"]


def test_half_a_launcher_is_refused(no_launcher: pytest.MonkeyPatch) -> None:
    os.environ.update(RANK="0", WORLD_SIZE="2")
    with pytest.raises(EngineError, match="set RANK, WORLD_SIZE but not LOCAL_RANK, MASTER_ADDR"):
        starting.prepare_environment()


def test_a_whole_launcher_is_left_alone(no_launcher: pytest.MonkeyPatch) -> None:
    given = dict(zip(VARIABLES, ["3", "4", "1", "there", "29500"], strict=True))
    os.environ.update(given)
    starting.prepare_environment()
    assert {v: os.environ[v] for v in VARIABLES} == given


@pytest.mark.parametrize("chosen", [True, False])
def test_a_planted_lock_is_named(
    chosen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if chosen:
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
        folder = tmp_path / "deepspeed_shm_comm"
    else:
        monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
        monkeypatch.setattr(starting, "get_default_build_root", lambda: str(tmp_path))
        folder = tmp_path / "py311_cpu" / "deepspeed_shm_comm"
    folder.mkdir(parents=True)
    starting.warn_about_locks()
    assert not caplog.records
    (folder / "lock").touch()
    with caplog.at_level(logging.WARNING):
        starting.warn_about_locks()
    (record,) = caplog.records
    assert f"operator deepspeed_shm_comm was started and not finished: {folder / 'lock'}" in (
        record.getMessage()
    )
    assert f"delete the folder {folder}" in record.getMessage()


def test_a_port_that_is_taken_is_named(no_launcher: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        given = dict(zip(VARIABLES, ["0", "1", "0", "127.0.0.1", port], strict=True))
        os.environ.update(given)
        with pytest.raises(EngineError, match=f"Port {port}, .* is in use on this machine") as said:
            starting.start(EngineConfig())
    assert "deepspeed --master_port 29501" in str(said.value)
