"""Planned steps in, micro-batches out, read and decoded by worker processes ahead of the trainer.

Without worker processes a thread of this process reads ahead: decoding, resizing and what the
trainer computes all leave the interpreter to the other meanwhile. The stock torch DataLoader does
the work, with the plan itself as its sampler: an "index" is a
MicroBatchPlan, so the order is the plan's whatever the number of workers. Workers are started by a
fork server: forking this process beside initialised process groups and their threads can deadlock,
and spawning imports everything once for each worker. The dataset is sent to the workers by pickle.

A record that cannot be read or decoded leaves a hole and a fault. Anything else stops the run with
the step, packs and keys that were being read.
"""

from __future__ import annotations

import itertools
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from vltrain.batch import (
    Example,
    Fault,
    MicroBatch,
    MicroBatchPlan,
    Modality,
    Origin,
    PieceRef,
    StepPlan,
)
from vltrain.data.collate import ReadPiece, collate
from vltrain.data.config import DecodeMode
from vltrain.errors import DataError, RecordFault, VltrainError
from vltrain.processing.images import Rounding
from vltrain.processing.tile_images import squares_of

SHOWN_PACKS = 8
"""Named of a micro-batch that does not come."""


class PieceReader(Protocol):
    """Where pieces come from. Must be picklable where there are workers."""

    def read_piece(self, source: int, piece: int) -> Example:
        """The piece, with image bytes. Raises RecordFault for a bad record."""
        ...

    def origin(self, source: int, piece: int) -> Origin:
        """Where the piece lies; must not fail for a planned piece."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadFailure:
    """An error of ours on its way from a worker (as a value: raising it there would wrap it in a
    traceback that hides the message)."""

    message: str


class MicroBatchDataset(Dataset):
    """Map-style: a MicroBatchPlan is the index.

    modalities: of each source, in recipe order. image_side in pixels; pad_color is RGB, 0 to 255;
    rounding: see ``processing.images.square_layout``.
    """

    def __init__(
        self,
        reader: PieceReader,
        *,
        modalities: Sequence[Modality],
        image_token_id: int,
        image_side: int,
        pad_color: Sequence[int],
        rounding: Rounding,
        decode: DecodeMode,
    ) -> None:
        self._reader = reader
        self._modalities = tuple(modalities)
        self._image_token_id = image_token_id
        self._image_side = image_side
        self._pad_color = tuple(pad_color)
        self._rounding: Rounding = rounding
        self._decode = decode

    def __getitem__(self, plan: MicroBatchPlan) -> MicroBatch:
        """Read, decode and collate. Raises DataError naming step, packs and sample."""
        rows = [[self._read(ref) for ref in pack.pieces] for pack in plan.packs]
        return collate(plan, rows, image_token_id=self._image_token_id, image_side=self._image_side)

    def describe(self, plan: MicroBatchPlan) -> str:
        """Where a micro-batch comes from: step, and by pack the shard and key of its pieces."""
        packs = [
            f"pack {pack.number}: "
            + ", ".join(str(self._reader.origin(ref.source, ref.piece)) for ref in pack.pieces)
            for pack in plan.packs
        ]
        more = f"; {len(packs) - SHOWN_PACKS} more packs" if len(packs) > SHOWN_PACKS else ""
        shown = "; ".join(packs[:SHOWN_PACKS])
        return f"step {plan.step}, micro-batch {plan.micro}: {shown}{more}"

    def _read(self, ref: PieceRef) -> ReadPiece:
        origin = self._reader.origin(ref.source, ref.piece)
        modality = self._modalities[ref.source]
        try:
            example = self._reader.read_piece(ref.source, ref.piece)
            squares = tuple(
                squares_of(
                    image,
                    side=self._image_side,
                    pad_color=self._pad_color,
                    rounding=self._rounding,
                    mode=self._decode.value,
                )
                for image in example.images
            )
        except RecordFault as error:
            fault = Fault(origin=origin, reason=error.reason, detail=error.detail, action="hole")
            return ReadPiece(ref=ref, origin=origin, modality=modality, example=None, fault=fault)
        except Exception as error:
            error.add_note(f"while reading {origin}")
            raise
        return ReadPiece(
            ref=ref, origin=origin, modality=modality, example=example, squares=squares
        )


class StepLoader:
    """Iterates (StepPlan, its micro-batches of this rank).

    plan_steps is consumed lazily, at most ``prefetch_steps`` steps ahead of what is handed out
    (rounded up to what keeps every worker busy). workers=0 reads in a thread of this process; with
    prefetch_steps=0 too, in the caller's own, nothing ahead.
    Leaving the loop early stops the workers. Signals that ask the run to stop do not reach them:
    what they read is still wanted.
    """

    def __init__(
        self,
        plan_steps: Iterable[tuple[StepPlan, tuple[MicroBatchPlan, ...]]],
        *,
        dataset: MicroBatchDataset,
        workers: int,
        prefetch_steps: int,
    ) -> None:
        self._plan_steps = plan_steps
        self._dataset = dataset
        self._workers = workers
        self._prefetch_steps = prefetch_steps
        self._awaited: MicroBatchPlan | None = None

    def waiting_for(self) -> str:
        """What the micro-batch that is waited for holds, for a person who must find out why it does
        not come; may be called from any thread."""
        awaited = self._awaited
        return "" if awaited is None else self._dataset.describe(awaited)

    def __iter__(self) -> Iterator[tuple[StepPlan, list[MicroBatch]]]:
        steps = iter(self._plan_steps)
        first = next(steps, None)
        if first is None:
            return
        pending: deque[tuple[StepPlan, tuple[MicroBatchPlan, ...]]] = deque()

        def plans() -> Iterator[MicroBatchPlan]:
            for step, micros in itertools.chain([first], steps):
                assert micros, f"step {step.step} has no micro-batch on this rank"
                pending.append((step, micros))
                if len(pending) == 1:
                    self._awaited = micros[0]
                yield from micros

        batches: Any = iter(self._loader(plans(), micros_per_step=len(first[1])))
        if not self._workers and self._prefetch_steps:
            batches = _ReadAhead(batches, depth=self._prefetch_steps * len(first[1]))
        # Where nobody closes this generator: the interpreter's end waits for workers, and they are
        # deaf to its SIGTERM.
        stop = Finalize(None, _stop_workers, args=(batches,), exitpriority=10)
        try:
            while True:
                self._awaited = pending[0][1][0] if pending else None
                if (batch := next(batches, None)) is None:
                    return
                step, awaited = pending.popleft()
                micros = [_unwrapped(batch)]
                for self._awaited in awaited[1:]:
                    micros.append(_unwrapped(next(batches)))
                self._awaited = None
                yield step, micros
        finally:
            self._awaited = None
            stop()

    def _loader(self, plans: Iterator[MicroBatchPlan], *, micros_per_step: int) -> DataLoader:
        ahead: dict[str, Any] = {}
        if self._workers:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["__main__", __name__])
            _start_fork_server()
            batches_ahead = max(1, self._prefetch_steps) * micros_per_step
            ahead = {
                "multiprocessing_context": context,
                "worker_init_fn": _end_with_the_trainer,
                "prefetch_factor": -(-batches_ahead // self._workers),
            }
        return DataLoader(
            _Located(self._dataset),
            batch_size=None,
            sampler=plans,
            num_workers=self._workers,
            collate_fn=_unchanged,
            generator=torch.Generator(),  # its seed draw must not move the global generator
            **ahead,
        )


def _start_fork_server() -> None:
    """With the signals that launchers send to every process of a job kept back: the fork server and
    its workers inherit that, and end when this process does. The resource tracker goes first: its
    start would let SIGTERM through again."""
    multiprocessing.resource_tracker.ensure_running()
    signals = {signal.SIGTERM, signal.SIGUSR1}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_the_trainer(number: int) -> None:
    """In a worker: end as soon as the process that it reads for is gone, also where that one was
    killed. What torch looks at is the worker's parent, which is the fork server; and that lives for
    as long as any worker does."""
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    waits = threading.Thread(target=_end_after, args=(trainer,), name="trainer", daemon=True)
    waits.start()


def _end_after(process: BaseProcess) -> None:
    process.join()
    os._exit(1)


def _stop_workers(batches: Any) -> None:
    """Left to the garbage collector, workers would outlive an error for as long as anybody holds
    its traceback. The names are torch's own; without them, collection still ends the workers."""
    stop = getattr(batches, "_shutdown_workers", None)
    if stop is not None:
        stop()
    for worker in getattr(batches, "_workers", ()):
        if worker.is_alive():  # stuck in a read, and deaf to SIGTERM
            worker.kill()


class _ReadAhead:
    """What an iterator gives, fetched by a thread so many items ahead.

    Both ways are ``SimpleQueue``s, which take and give without a lock of their own: a thread that
    is woken holding one (as of ``queue.Queue``) waits for the interpreter with it in its hand, and
    whoever asks for an item meanwhile waits for both, many milliseconds.
    """

    def __init__(self, items: Iterator[Any], *, depth: int) -> None:
        self._items = items
        self._found: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._room: queue.SimpleQueue[None] = queue.SimpleQueue()  # one for each item to fetch
        for _ in range(depth):
            self._room.put(None)
        self._stopped = threading.Event()
        self._ended = False
        # A daemon: a read that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._fetch, name="read-ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> _ReadAhead:
        return self

    def __next__(self) -> Any:
        if self._ended:
            raise StopIteration
        item, error = self._found.get()
        if error is not None:
            self._ended = True
            raise error
        self._room.put(None)
        return item

    def _fetch(self) -> None:
        error: BaseException | None = None
        while error is None:
            self._room.get()
            if self._stopped.is_set():
                return
            item = None
            try:
                item = next(self._items)
            except BaseException as raised:  # noqa: BLE001  # for the thread that waits to raise
                error = raised
            self._found.put((item, error))

    def _shutdown_workers(self) -> None:
        """As torch's workers are ended. Waits for the read that is under way, not for one that
        hangs."""
        self._stopped.set()
        self._room.put(None)
        self._thread.join(timeout=5.0)


class _Located(Dataset):
    """The dataset, its errors carrying what was being read."""

    def __init__(self, dataset: MicroBatchDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, plan: MicroBatchPlan) -> MicroBatch | ReadFailure:
        where = (
            f"step {plan.step}, micro-batch {plan.micro}, "
            f"packs {', '.join(str(pack.number) for pack in plan.packs)}"
        )
        try:
            return self._dataset[plan]
        except VltrainError as error:
            notes = getattr(error, "__notes__", [])
            return ReadFailure(message=f"{error} ({'; '.join([*notes, where])})")
        except Exception as error:
            error.add_note(f"in {where}")
            raise


def _unwrapped(batch: MicroBatch | ReadFailure) -> MicroBatch:
    if isinstance(batch, ReadFailure):
        raise DataError(batch.message)
    return batch


def _unchanged(batch: Any) -> Any:
    return batch
