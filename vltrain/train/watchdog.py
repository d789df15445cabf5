"""Watches that this process and the others go on, and ends the run with the reason where they do
not.

In: what the main thread is doing, told at each change; a board (torch's store) that every process
can write and read alone. Out: stack traces of a process that stands still, the reason that another
one ended, and the end of this process where its main thread waits for what will never come. A
thread looks every ``beat_seconds``; the main thread pays an assignment per change.

- A process that fails writes its reason on the board; the others read it and end.
- A process that is killed stops beating; the next in the ring writes that on the board.
- A process that stands still longer than ``stall_seconds`` shows the stacks of all its threads and
  what it does (all ranks wait for it, so all show theirs); towards ``end_seconds`` it writes the
  reason on the board, and all end.
- Native code that holds the interpreter's lock keeps this thread from looking too: the process
  stops beating, the others count it as dead, and after ``end_seconds`` a timer outside the
  interpreter shows its stacks and ends it (exit code 1), should all of them hang like that.

Rejected: waiting for the collectives' own time-outs alone: with NCCL they come late, and they name
the operation, not the cause.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, TextIO

import torch.distributed as dist

from vltrain import distributed
from vltrain.errors import RankLostError, VltrainError

log = logging.getLogger(__name__)

FAULT = "fault"
STORE_GONE = "rank 0, or the launcher that held the run's store, is gone"
GRACE_SECONDS = 10.0
"""For a main thread to end by itself once the reason is on the board."""
ALONE = 0.8
"""Of ``end_seconds``: a process that waits for nobody names itself before those that wait for it
end."""


class Board(Protocol):
    """What is used of torch's store."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...
    def compare_set(self, key: str, expected_value: str, desired_value: str, /) -> bytes: ...


@dataclass(frozen=True, kw_only=True)
class Limits:
    """stall_seconds: until stacks are shown. end_seconds: until the run ends. lost_seconds: without
    a beat, after which a process counts as dead."""

    stall_seconds: float
    end_seconds: float
    lost_seconds: float
    beat_seconds: float = 2.0


@dataclass(frozen=True, kw_only=True)
class _Doing:
    """alone: it waits for no other process, unless in an exchange of ``vltrain.distributed``.
    detail: asked for only when it is told."""

    what: str
    alone: bool
    detail: Callable[[], str]
    end_seconds: float
    since: float


class Watchdog:
    """A context around everything that may stand still."""

    def __init__(
        self,
        board: Board,
        *,
        rank: int,
        world: int,
        limits: Limits,
        waits_for_others: Callable[[], bool] = distributed.waits_for_others,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        end: Callable[[int], None] = os._exit,
        stream: TextIO | None = None,
    ) -> None:
        self._board, self._rank, self._world, self._limits = board, rank, world, limits
        self._waits_for_others = waits_for_others
        self._clock, self._sleep, self._end = clock, sleep, end
        self._stream = stream if stream is not None else sys.stderr
        self._who = f"rank {rank} on {socket.gethostname()}"
        self.doing("starting", alone=True)
        self._shown_since: float | None = None  # start of the stall whose stacks were shown
        self._fault_since: float | None = None
        self._known: str | None = None  # the reason, should the board be gone when it is asked for
        self._beats = 0
        self._neighbour = (b"", clock())  # last beat of the next in the ring, and when it changed
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def doing(
        self,
        what: str,
        *,
        alone: bool,
        detail: Callable[[], str] = str,
        end_seconds: float | None = None,
    ) -> None:
        """Tell what the main thread does from now on. alone: it waits for no other process, unless
        in an exchange of ``vltrain.distributed``. detail: asked for only when it is told.
        end_seconds: instead of the limits' own, for this alone."""
        self._doing = _Doing(
            what=what,
            alone=alone,
            detail=detail,
            end_seconds=end_seconds if end_seconds is not None else self._limits.end_seconds,
            since=self._clock(),
        )

    def __enter__(self) -> Watchdog:
        self.look()  # one that stands still or dies from now on is missed by the others
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join(timeout=GRACE_SECONDS)
        faulthandler.cancel_dump_traceback_later()
        together = error is None or (isinstance(error, VltrainError) and error.on_all_ranks)
        lost = isinstance(error, RankLostError) or (
            error is not None and distributed.is_lost_peer(error)
        )
        reason = None
        try:
            if together:
                self._beat("ended")
            elif lost:
                reason = self._others()
            else:
                self._accuse(f"{self._who}: {type(error).__name__}: {error}")
        except dist.DistError:
            reason = self._known or STORE_GONE
        if lost and reason is not None:
            raise RankLostError(f"{reason}. The last checkpoint is as it was.") from error

    def look(self) -> None:
        """One look: beat, own stall, the next in the ring, the board."""
        try:
            self._beat("beating")
            self._look_at_self()
            self._look_at_neighbour()
            fault = self._fault()
        except dist.DistError:
            fault = self._known or STORE_GONE
        if fault is None:
            return
        if self._fault_since is None:
            self._fault_since = self._clock()
        elif self._clock() - self._fault_since > GRACE_SECONDS:
            self._show(f"the run ends: {fault}")
            self._end(RankLostError.exit_code)

    def _watch(self) -> None:
        while not self._done.wait(self._limits.beat_seconds):
            self.look()

    def _beat(self, state: str) -> None:
        self._beats += 1
        beat = {"state": state, "count": self._beats, "who": self._who, "doing": self._doing.what}
        self._board.set(f"beat/{self._rank}", json.dumps(beat))
        if state == "beating" and not self._done.is_set():
            # For C code that holds the interpreter's lock, and so this thread too.
            seconds = self._limits.end_seconds + 2 * self._limits.beat_seconds
            faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)

    def _look_at_self(self) -> None:
        doing, limits = self._doing, self._limits
        seconds = self._clock() - doing.since
        if seconds > limits.stall_seconds and self._shown_since != doing.since:
            self._shown_since = doing.since
            self._show(f"no progress for {seconds:.0f} s: {_told(doing)}")
        alone = doing.alone and not self._waits_for_others()
        if seconds > doing.end_seconds * (ALONE if alone else 1.0):
            self._accuse(f"{self._who}: no progress for {seconds:.0f} s: {_told(doing)}")

    def _look_at_neighbour(self) -> None:
        key = f"beat/{(self._rank + 1) % self._world}"
        if self._world == 1:
            return
        beat = self._board.get(key) if self._board.check([key]) else b""
        now = self._clock()
        if beat != self._neighbour[0]:
            self._neighbour = (beat, now)
        elif now - self._neighbour[1] > self._limits.lost_seconds:
            rank = (self._rank + 1) % self._world
            never = {"state": "beating", "who": f"rank {rank}", "doing": "starting"}
            told = json.loads(beat) if beat else never
            if told["state"] == "beating":
                self._accuse(_dead(told, seconds=now - self._neighbour[1]))

    def _others(self) -> str | None:
        """Why another process is gone: what it wrote, or else that it is silent."""
        before = self._beats_of_others()
        for _ in range(5):
            if (fault := self._fault()) is not None:
                return fault
            self._sleep(self._limits.beat_seconds / 2)
        after = self._beats_of_others()
        silent = [json.loads(beat) for rank, beat in after.items() if beat == before.get(rank)]
        dead = [told for told in silent if told["state"] == "beating"]
        if not dead:
            return None
        reason = "; ".join(_dead(told, seconds=2.5 * self._limits.beat_seconds) for told in dead)
        self._accuse(reason)
        return reason

    def _beats_of_others(self) -> dict[int, bytes]:
        ranks = [rank for rank in range(self._world) if rank != self._rank]
        return {
            rank: self._board.get(f"beat/{rank}")
            for rank in ranks
            if self._board.check([f"beat/{rank}"])
        }

    def _fault(self) -> str | None:
        if self._known is None and self._board.check([FAULT]):
            self._known = self._board.get(FAULT).decode()
        return self._known

    def _accuse(self, reason: str) -> None:
        """The first reason stays."""
        self._board.compare_set(FAULT, "", reason)

    def _show(self, headline: str) -> None:
        log.error("%s: %s. Stacks of all threads of this process:", self._who, headline)
        faulthandler.dump_traceback(file=self._stream, all_threads=True)


def _told(doing: _Doing) -> str:
    detail = doing.detail()
    return f"{doing.what}{f' ({detail})' if detail else ''}"


def _dead(told: dict[str, str], *, seconds: float) -> str:
    return (
        f"{told['who']} gave no sign of life for {seconds:.0f} s; it was {told['doing']}. It was "
        "killed (out of memory?), its machine is gone, or it stands still in native code"
    )
