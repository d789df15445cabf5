"""Ranks and small reductions, right in one process too.

Everything that the control of a run needs to agree on (counts, digests, flags, paths) goes over a
gloo group of its own, on the CPU: it never waits for the accelerator and never synchronises it.
Gradients and parameters are the engine's business, not this module's. Where another process is
gone, or does not answer in time, every function here raises RankLostError.
"""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import os
import threading
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from vltrain.errors import RankLostError

_control: Any = None  # the gloo group, once it is open
_used: contextvars.ContextVar[Any] = contextvars.ContextVar("group", default=None)
_exchanging: set[int] = set()  # threads that are in an exchange


def rank() -> int:
    """Rank of this process; 0 where nothing is initialised."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes; 1 where nothing is initialised."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """Rank within the node, as the launcher says it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_first() -> bool:
    """True on the one process that writes files and prints."""
    return rank() == 0


def open_control_group(*, timeout_seconds: float) -> None:
    """Make the gloo group of the control plane (collective; after the process group exists)."""
    global _control
    if dist.is_initialized() and _control is None:
        _control = dist.new_group(
            backend="gloo", timeout=datetime.timedelta(seconds=timeout_seconds)
        )


def open_group(*, timeout_seconds: float) -> Any:
    """A further gloo group (collective), for exchanges of another thread; None in one process."""
    if world_size() == 1:
        return None
    with _exchange():
        return dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=timeout_seconds))


@contextlib.contextmanager
def using(group: Any) -> Iterator[None]:
    """In this thread, let the functions below exchange over ``group``: two threads must not share
    one, or their exchanges would mix."""
    token = _used.set(group)
    try:
        yield
    finally:
        _used.reset(token)


def _group() -> Any:
    return _used.get() or _control


def open_board(*, timeout_seconds: float) -> Any:
    """A connection of its own to the store through which the processes met (torch's ``Store``):
    keys that every process can set and read without the others taking part."""
    store: Any = distributed_c10d._get_default_store()
    store = store.clone()
    store.set_timeout(datetime.timedelta(seconds=timeout_seconds))
    return distributed_c10d.PrefixStore("vltrain", store)


def is_lost_peer(error: BaseException) -> bool:
    """Whether torch says with this that another process is gone or silent (gloo says so in a plain
    RuntimeError)."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """Around exchanges: raises RankLostError where torch says that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        raise RankLostError(
            "another process of this run failed, was killed or stands still; its own log says why. "
            f"Torch says: {str(error).splitlines()[0]}"
        ) from error


@contextlib.contextmanager
def _exchange() -> Iterator[None]:
    thread = threading.get_ident()
    _exchanging.add(thread)
    try:
        with answered():
            yield
    finally:
        _exchanging.discard(thread)


def waits_for_others() -> bool:
    """Whether the main thread of this process is in one of the exchanges below."""
    return threading.main_thread().ident in _exchanging


def barrier() -> None:
    if world_size() > 1:
        with _exchange():
            dist.barrier(group=_group())


def sum_floats(values: list[float]) -> list[float]:
    """Element-wise float64 sum over all ranks."""
    if world_size() == 1:
        return list(values)
    summed = torch.tensor(values, dtype=torch.float64)
    with _exchange():
        dist.all_reduce(summed, group=_group())
    return [float(x) for x in summed]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's ``value`` on every rank, in rank order."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    with _exchange():
        dist.all_gather_object(gathered, value, group=_group())
    return gathered


def broadcast_object(value: Any) -> Any:
    """Rank 0's ``value`` on every rank."""
    if world_size() == 1:
        return value
    box = [value if is_first() else None]
    with _exchange():
        dist.broadcast_object_list(box, src=0, group=_group())
    return box[0]
