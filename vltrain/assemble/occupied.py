"""One run at a time writes into a run directory.

In: the directory, on the first rank. Out: nobody else's for as long as this process holds it. The
lock is the kernel's (flock), so a killed run leaves nothing behind that would have to be removed.
A file system that has no locks is named in a warning, and the run goes on without. Rejected: a file
with a process number, which outlives a killed node and then has to be deleted by hand.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vltrain.assemble.recording import writing_to
from vltrain.errors import RecordingError

log = logging.getLogger(__name__)

LOCK = "writer.lock"
PATIENCE_SECONDS = 30.0
"""A run that was told to stop may still write its last checkpoint when its successor starts."""


@contextlib.contextmanager
def occupied(directory: Path, *, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Make ``directory`` and hold it. Raises RecordingError where another process holds it for
    longer than ``patience_seconds``, or it cannot be made."""
    with writing_to(directory):
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / LOCK).open("a+")
    with lock:
        held = _take(lock, directory, until=time.monotonic() + patience_seconds)
        if held:
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            with writing_to(directory):
                lock.truncate(0)
                lock.write(f"process {os.getpid()} on {socket.gethostname()}, since {now}")
                lock.flush()
        try:
            yield
        finally:
            if held:
                with contextlib.suppress(OSError):  # of a full disk the run has said more
                    lock.truncate(0)


def _take(lock: IO[str], directory: Path, *, until: float) -> bool:
    """Whether it is locked now; False where the file system has no locks."""
    told = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read() or "another process"
            if time.monotonic() >= until:
                raise RecordingError(
                    f"{directory} is in use by {holder}. Two runs in one directory would mix "
                    "their rows and delete each other's checkpoints: wait for that one to end, "
                    "stop it, or give another run.name"
                ) from None
            if not told:
                log.warning("%s is in use by %s; waiting for its end", directory, holder)
                told = True
            time.sleep(0.2)
        except OSError as error:
            log.warning("%s cannot be locked (%s): start no second run in it", directory, error)
            return False
        else:
            return True
