"""Many short runs of several processes, without the seconds that each needs to import torch,
DeepSpeed and transformers: every rank is forked from a process that has them.

A rank is a process like any other: launch/train.py runs in it as a script, it has its own process
group and files, and it can be killed. It cannot have data workers (they would be forked from a
process that knows another main module).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from launching import Finished, environment, free_port

IMPORTED = ["torch.distributed", "vltrain.assemble.training", "hydra"]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(IMPORTED)


def run_forked(
    *words: str,
    processes: int,
    cwd: Path,
    kill_when: Callable[[], bool] | None = None,
    seconds: float = 400,
) -> Finished:
    """``launch/train.py words`` in so many processes to its end, or SIGKILL to all of them at once
    as soon as ``kill_when()`` holds (or ``seconds`` are over). ``code``: the highest exit code, or
    the signal that killed them (negative)."""
    shared = {
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    logs = [cwd / f"forked-{rank}.err" for rank in range(processes)]
    ranks = [
        _context.Process(
            target=_rank,
            args=(words, {"RANK": str(n), "LOCAL_RANK": str(n), **shared}, str(cwd), str(log)),
        )
        for n, log in enumerate(logs)
    ]
    for rank in ranks:
        rank.start()
    end = time.monotonic() + seconds
    try:
        while any(rank.is_alive() for rank in ranks):
            if time.monotonic() > end or (kill_when is not None and kill_when()):
                break
            time.sleep(0.005)
    finally:
        _kill([rank.pid for rank in ranks if rank.is_alive() and rank.pid is not None])
        for rank in ranks:
            rank.join()
    codes = [rank.exitcode or 0 for rank in ranks]
    err = "".join(log.read_text(errors="replace") for log in logs if log.exists())
    return Finished(code=min(codes) if min(codes) < 0 else max(codes), out="", err=err)


def _kill(pids: list[int]) -> None:
    """Each with its workers; all stand still first, so that none sees another one go."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)
            with contextlib.suppress(ProcessLookupError):  # not yet a group of its own
                os.kill(pid, number)


def _rank(words: tuple[str, ...], added: dict[str, str], cwd: str, log: str) -> None:
    os.setpgid(0, 0)
    os.chdir(cwd)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(written, 1)
    os.dup2(written, 2)
    os.environ.clear()
    os.environ.update({**environment(), **added})
    sys.argv = ["launch/train.py", *words]
    sys.path.insert(0, os.path.abspath("launch"))
    runpy.run_path("launch/train.py", run_name="__main__")
