"""Checkpoints written while training goes on.

In: the same as ``CheckpointStore.save``. Out: the same files, written by a thread from a snapshot
(a copy in host memory of this rank's share of masters and moments, 12 bytes a parameter over the
ranks). The thread takes the snapshot too, beside the forward and backward of the next step, which
change neither; only the update must wait for it (``copied``). One snapshot at a time: a save that
comes before the last one is written waits for it. The thread's exchanges go over a group of their
own, so they never mix with those of the loop. What went wrong is an error on every rank, raised by
``settle``; the loop asks ``failed`` at each step. Rejected: a process of its own (a second copy of
the snapshot); snapshots into memory that is kept between saves (faster, but taken for ever).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from vltrain import distributed
from vltrain.checkpoint.manifest import Manifest
from vltrain.checkpoint.store import CheckpointStore
from vltrain.engine.fragments import Fragment
from vltrain.errors import CheckpointError, VltrainError

log = logging.getLogger(__name__)

CLOSE_SECONDS = 60.0
"""For a write to end when the run ends with an error."""


class BackgroundWriter:
    """Call every method on every rank, in the same order (``copied``, ``failed`` and ``close``
    excepted)."""

    def __init__(self, store: CheckpointStore, *, group: Any) -> None:
        self._store, self._group = store, group
        self._thread: threading.Thread | None = None
        self._error: VltrainError | None = None
        self._written = False
        self._copied = threading.Event()
        self._copied.set()

    def save(
        self,
        manifest: Manifest,
        fragments: Iterable[Fragment],
        *,
        tensor_digests: Mapping[str, Mapping[str, str]],
        texts: Mapping[str, str],
        rng: Mapping[str, torch.Tensor],
        waiting: Callable[[], None],
    ) -> None:
        """Begin to take the snapshot and to write it, after the write before (``waiting`` is called
        every second until that is done). ``fragments`` is gone through by the thread: nothing that
        it reads may change before ``copied`` returns. Raises what the write before raised."""
        self.settle(waiting=waiting)
        self._written, self._error = False, None
        self._copied.clear()
        self._thread = threading.Thread(
            target=self._write,
            args=(manifest, fragments, _beside_the_kernels()),
            kwargs={"tensor_digests": tensor_digests, "texts": texts, "rng": rng},
            name="checkpoint",
            daemon=True,
        )
        self._thread.start()

    def copied(self, *, waiting: Callable[[], None]) -> None:
        """Wait until the last save has all that it reads (``waiting`` is called every second)."""
        while not self._copied.wait(timeout=1.0):
            waiting()

    def failed(self) -> bool:
        """Whether a write has ended badly on this rank; ``settle`` will say how."""
        thread = self._thread
        return thread is not None and not thread.is_alive() and not self._written

    def settle(self, *, waiting: Callable[[], None]) -> None:
        """Wait until nothing is being written. Raises CheckpointError on all ranks where it could
        not be."""
        if self._thread is None:
            return
        while self._thread.is_alive():
            self._thread.join(timeout=1.0)
            waiting()
        self._thread = None
        if self._error is not None:
            raise self._error
        if not self._written:
            raise CheckpointError(
                "the checkpoint's writer ended with an error of ours (its traceback is in the log)."
                " Older checkpoints are as they were."
            )

    def close(self) -> None:
        """At the end of the run, also with another error: let the last write end, if it can."""
        if self._thread is None:
            return
        self._thread.join(timeout=CLOSE_SECONDS)
        if self._thread.is_alive() or not self._written:
            log.error("the last checkpoint is not written: %s", self._error or "still at it")

    def _write(
        self,
        manifest: Manifest,
        fragments: Iterable[Fragment],
        stream: torch.cuda.Stream | None,
        **files: Any,
    ) -> None:
        begin = time.monotonic()
        try:
            with _on(stream):
                snapshot = deque(fragments)
        finally:
            self._copied.set()
        log.info("snapshot of step %d in %.2f s", manifest.step, time.monotonic() - begin)
        try:
            with distributed.using(self._group):
                directory = self._store.save(manifest, _consumed(snapshot), **files)
        except VltrainError as error:
            self._error = error
            return
        self._written = True
        if distributed.is_first():
            seconds = time.monotonic() - begin
            log.info("checkpoint of step %d in %s (%.1f s)", manifest.step, directory, seconds)


def _beside_the_kernels() -> torch.cuda.Stream | None:
    """On a GPU, a stream of its own for the copies: after all that is queued now, the last update
    among it, and beside what comes."""
    if not torch.cuda.is_initialized():
        return None
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    return stream


@contextlib.contextmanager
def _on(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """In a thread of its own. Copies go to pageable memory, so each is there when the call that
    asked for it returns: no event has to be waited for before the files are written, no pinned
    memory lives on. What is copied from belongs to the engine and outlives the copy, so the
    allocator need not be told of the stream."""
    if stream is None:
        yield
        return
    # A new thread is on GPU 0; leaving the stream would make a context there, in every process.
    torch.cuda.set_device(stream.device)
    with torch.cuda.stream(stream):
        yield


def _consumed(snapshot: deque[Fragment]) -> Iterator[Fragment]:
    """Each fragment's memory is free as soon as it is written."""
    while snapshot:
        yield snapshot.popleft()
