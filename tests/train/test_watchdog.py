"""The watchdog on a board that is a dictionary and a clock that is turned by hand."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from vltrain.errors import CheckpointError, DataError, RankLostError
from vltrain.train.watchdog import Limits, Watchdog

LIMITS = Limits(stall_seconds=30, end_seconds=100, lost_seconds=20, beat_seconds=5)


class Board:
    """torch's store, as far as it is used."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.gone = False

    def _answer(self) -> None:
        if self.gone:
            raise dist.DistNetworkError("Broken pipe")

    def set(self, key: str, value: str) -> None:
        self._answer()
        self.kept[key] = value.encode()

    def get(self, key: str) -> bytes:
        return self.kept[key]

    def check(self, keys: list[str]) -> bool:
        self._answer()
        return all(key in self.kept for key in keys)

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        assert expected == ""
        self._answer()
        return self.kept.setdefault(key, desired.encode())


class Bench:
    """Watchdogs of some ranks on one board, their time, and how each was ended."""

    def __init__(self, folder: Path) -> None:
        self.board, self.now, self.folder = Board(), 0.0, folder
        self.ended: dict[int, int] = {}
        self.beating: list[Watchdog] = []
        self.exchanging: set[int] = set()

    def rank(self, rank: int, *, world: int = 2) -> Watchdog:
        def end(code: int) -> None:
            self.ended[rank] = code

        return Watchdog(
            self.board,
            rank=rank,
            world=world,
            limits=LIMITS,
            waits_for_others=lambda: rank in self.exchanging,
            clock=lambda: self.now,
            sleep=self.sleep,
            end=end,
            stream=(self.folder / f"stacks-{rank}").open("w"),
        )

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for watchdog in self.beating:
            watchdog.look()

    def stacks(self, rank: int) -> str:
        return (self.folder / f"stacks-{rank}").read_text()

    def fault(self) -> str | None:
        return self.board.kept["fault"].decode() if "fault" in self.board.kept else None


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_all_is_well(bench: Bench) -> None:
    first, second = bench.rank(0), bench.rank(1)
    for _ in range(40):
        bench.now += 5
        for watchdog in (first, second):
            watchdog.doing("training", alone=False)
            watchdog.look()
    assert bench.fault() is None
    assert bench.ended == {}
    assert bench.stacks(0) == bench.stacks(1) == ""


def test_a_stalled_loader_names_what_it_waits_for(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    slow, waits = bench.rank(0), bench.rank(1)
    slow.doing("waiting for data, step 4", alone=True, detail=lambda: "pack 3: emoji:a.tar:k7")
    waits.doing("agreeing, step 4", alone=False)
    with caplog.at_level(logging.ERROR):
        for bench.now in (10, 31, 36):
            slow.look()
            waits.look()
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2, "once for a stall"
    assert "no progress for 31 s: waiting for data, step 4 (pack 3: emoji:a.tar:k7)" in told[0]
    assert "no progress for 31 s: agreeing, step 4." in told[1]
    assert "test_watchdog.py" in bench.stacks(0)
    assert "test_watchdog.py" in bench.stacks(1)
    assert bench.fault() is None
    for bench.now in (81, 85, 90, 95.5):
        slow.look()
        waits.look()
    assert "rank 0 on " in str(bench.fault())
    assert "no progress for 81 s: waiting for data, step 4 (pack 3" in str(bench.fault())
    assert bench.ended == {0: 3, 1: 3}, "both end, ten seconds after the reason was there"


def test_a_rank_that_waits_for_others_has_the_whole_time(bench: Bench) -> None:
    watchdog = bench.rank(0, world=1)
    watchdog.doing("saving, step 8", alone=False)
    bench.now = 99
    watchdog.look()
    assert bench.fault() is None
    bench.now = 101
    watchdog.look()
    assert "no progress for 101 s: saving, step 8" in str(bench.fault())


def test_at_the_start_the_one_that_reads_is_named_and_not_the_one_that_waits(bench: Bench) -> None:
    """Both are told to load weights; one is done and waits in an exchange."""
    waits, reads = bench.rank(0), bench.rank(1)
    for watchdog in (waits, reads):
        watchdog.doing("starting: loading the weights", alone=True, end_seconds=500)
    bench.exchanging = {0}
    for bench.now in (5, 101, 399):  # longer than anything else may take
        for watchdog in (waits, reads):
            watchdog.look()
    assert bench.fault() is None
    for bench.now in (401, 403, 413, 414):
        for watchdog in (waits, reads):
            watchdog.look()
    assert str(bench.fault()).startswith("rank 1 on ")
    assert "no progress for 401 s: starting: loading the weights" in str(bench.fault())
    assert bench.ended == {0: 3, 1: 3}


def test_a_rank_that_never_began_to_look_is_missed(bench: Bench) -> None:
    """Killed or stopped between the processes' meeting and its first beat."""
    first = bench.rank(0)
    for bench.now in (5, 21):
        first.look()
    assert "rank 1 gave no sign of life for 21 s; it was starting." in str(bench.fault())


def test_native_code_that_holds_the_interpreters_lock_is_ended(tmp_path: Path) -> None:
    """As a read from a file system that hangs does in some libraries: no thread of the process can
    look any more."""
    script = (
        "import ctypes, test_watchdog as t\n"
        "limits = t.Limits(stall_seconds=1, end_seconds=1, lost_seconds=1, beat_seconds=0.1)\n"
        "with t.Watchdog(t.Board(), rank=0, world=1, limits=limits):\n"
        "    ctypes.PyDLL(None).sleep(300)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert ended.returncode == 1
    assert 'File "<string>", line 4 in <module>' in ended.stderr


def test_the_next_in_the_ring_finds_a_dead_rank(bench: Bench) -> None:
    ranks = [bench.rank(rank, world=3) for rank in range(3)]
    ranks[2].doing("training, step 9", alone=False)
    for watchdog in reversed(ranks):
        watchdog.look()
    for bench.now in (5, 10, 15, 20, 25):
        for watchdog in ranks[:2]:
            watchdog.doing("training, step 9", alone=False)
            watchdog.look()
    assert "rank 2 on " in str(bench.fault())
    assert "gave no sign of life for 25 s; it was training, step 9." in str(bench.fault())
    for bench.now in (26, 37):
        ranks[0].look()
    assert bench.ended == {0: 3}


def test_a_rank_that_ended_well_is_not_dead(bench: Bench) -> None:
    first, second = bench.rank(0), bench.rank(1)
    with second:
        pass
    for bench.now in (5, 50):
        first.look()
    assert bench.fault() is None


def test_one_that_fails_leaves_its_reason_for_the_others(bench: Bench) -> None:
    with pytest.raises(DataError), bench.rank(1):
        raise DataError("shard a.tar is gone")
    said = r"rank 1 on .*DataError: shard a\.tar is gone"
    with pytest.raises(RankLostError, match=said), bench.rank(0):
        raise RankLostError("torch says so")


def test_an_error_that_all_ranks_have_is_nobodys_fault(bench: Bench) -> None:
    with pytest.raises(CheckpointError), bench.rank(1):
        raise CheckpointError("disk full")
    assert bench.fault() is None


def test_a_killed_rank_is_found_silent(bench: Bench) -> None:
    first, killed, lives = (bench.rank(rank, world=3) for rank in range(3))
    killed.doing("training, step 9", alone=False)
    killed.look()
    lives.look()
    bench.beating = [lives]
    with pytest.raises(RankLostError, match=r"rank 1 on .* no sign of life") as raised, first:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection reset by peer")
    assert "rank 2" not in str(raised.value)
    assert "training, step 9" in str(raised.value)
    assert "last checkpoint is as it was" in str(raised.value)


def test_a_lost_rank_that_nobody_can_name(bench: Bench) -> None:
    with pytest.raises(RankLostError, match="torch says so"), bench.rank(0, world=1):
        raise RankLostError("torch says so")


def test_a_store_that_is_gone(bench: Bench) -> None:
    watchdog = bench.rank(1)
    bench.board.gone = True
    for bench.now in (5, 16):
        watchdog.look()
    assert bench.ended == {1: 3}
    with pytest.raises(RankLostError, match="rank 0, or the launcher that held"), bench.rank(1):
        raise RankLostError("torch says so")


def test_a_reason_that_was_read_is_given_when_the_store_is_gone(bench: Bench) -> None:
    """Rank 0 holds the store and ends first."""
    watchdog = bench.rank(1)
    bench.board.set("fault", "rank 0 on a: no progress for 200 s: starting: opening the data")
    watchdog.look()
    bench.board.gone = True
    with pytest.raises(RankLostError, match="rank 0 on a: no progress for 200 s"), watchdog:
        raise dist.DistNetworkError("Broken pipe")


def test_a_beat_says_who_and_what(bench: Bench) -> None:
    watchdog = bench.rank(1)
    watchdog.doing("saving, step 8", alone=False)
    watchdog.look()
    beat = json.loads(bench.board.kept["beat/1"])
    assert beat["state"] == "beating"
    assert beat["doing"] == "saving, step 8"
    assert beat["who"].startswith("rank 1 on ")


def test_a_rank_is_known_from_its_first_moment(bench: Bench) -> None:
    """Stopped before its thread first looked, it would be missed by nobody."""
    watchdog = bench.rank(1)
    watchdog._thread = NoThread()  # type: ignore[assignment]
    with watchdog:
        assert json.loads(bench.board.kept["beat/1"])["state"] == "beating"


class NoThread:
    def start(self) -> None: ...

    def join(self, timeout: float) -> None: ...
