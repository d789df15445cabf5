"""One run at a time in a directory."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vltrain.assemble.occupied import LOCK, occupied
from vltrain.errors import RecordingError

HOLD = """
import sys, time
from pathlib import Path
from vltrain.assemble.occupied import occupied
with occupied(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds tmp_path / "run"."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused_by_name(tmp_path: Path, holder: subprocess.Popen) -> None:
    with (
        pytest.raises(RecordingError, match=f"in use by process {holder.pid} on .* since 20"),
        occupied(tmp_path / "run", patience_seconds=0.3),
    ):
        pass
    assert f"process {holder.pid}" in (tmp_path / "run" / LOCK).read_text()


def test_a_killed_run_leaves_nothing_in_the_way(
    tmp_path: Path, holder: subprocess.Popen, caplog: pytest.LogCaptureFixture
) -> None:
    """And one that is ending is waited for."""
    threading.Timer(0.5, os.kill, (holder.pid, signal.SIGKILL)).start()
    with occupied(tmp_path / "run", patience_seconds=60):
        assert "waiting for its end" in caplog.text
        assert (tmp_path / "run" / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert (tmp_path / "run" / LOCK).read_text() == ""


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with occupied(tmp_path / "run"):
        assert "cannot be locked ([Errno 37] No locks available)" in caplog.text


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(RecordingError, match=r"files in .*/file/run cannot be written"),
        occupied(tmp_path / "file" / "run"),
    ):
        pass
