from __future__ import annotations

import dataclasses
import gc
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vltrain.batch import (
    Example,
    MicroBatchPlan,
    Modality,
    Origin,
    PackPlan,
    PieceRef,
    StepPlan,
    StoredImage,
)
from vltrain.data.config import DecodeMode
from vltrain.data.loader import MicroBatchDataset, StepLoader
from vltrain.errors import DataError, RecordFault

IMAGE = 3
PIECES = 24
BAD, BROKEN, STALE, BUG = 5, 7, 9, 11


def png(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(buffer, "PNG")
    return buffer.getvalue()


class Reader:
    """Piece n is [0, 3, 10 + n, 1] with one image of grey n; a few are bad in their own way."""

    def __init__(self, *, faults: bool) -> None:
        self.faults = faults

    def origin(self, source: int, piece: int) -> Origin:
        return Origin(source=f"s{source}", shard="0.tar", key=f"k{piece}")

    def read_piece(self, source: int, piece: int) -> Example:
        time.sleep(0.002 * (piece % 3))  # workers finish out of order
        data = png(piece)
        ids = [0, IMAGE, 10 + piece, 1]
        if self.faults:
            if piece == BAD:
                raise RecordFault("bad_json", "line 1")
            if piece == BROKEN:
                data = b"not a picture"
            if piece == STALE:
                ids = [*ids, 1]
            if piece == BUG:
                raise ZeroDivisionError("ours")
        return Example(
            origin=self.origin(source, piece),
            ids=np.array(ids, dtype=np.int32),
            learned=np.array([False, False, *[True] * (len(ids) - 2)]),
            image_starts=np.array([1], dtype=np.int32),
            image_tokens=np.array([1], dtype=np.int32),
            images=(StoredImage(member="png", data=data, width=8, height=8),),
        )


def dataset(*, faults: bool = False, reader: Reader | None = None) -> MicroBatchDataset:
    return MicroBatchDataset(
        reader or Reader(faults=faults),
        modalities=[Modality.multimodal],
        image_token_id=IMAGE,
        image_side=8,
        pad_color=(1, 2, 3),
        rounding="official",
        decode=DecodeMode.exact,
    )


def pack(number: int) -> PackPlan:
    ref = PieceRef(source=0, piece=number, tokens=4, supervised=2, image_tokens=1, images=1)
    return PackPlan(number=number, modality=Modality.multimodal, pieces=(ref,))


def micro(step: int, number: int, packs: tuple[int, ...]) -> MicroBatchPlan:
    return MicroBatchPlan(step=step, micro=number, packs=tuple(pack(p) for p in packs), num_slots=2)


def steps(first: int = 0, last: int = PIECES):
    """Steps of three packs in two micro-batches of two slots, the last with one."""
    for step, begin in enumerate(range(first, last, 3), start=1):
        numbers = range(begin, begin + 3)
        plan = StepPlan(
            step=step,
            modality=None,
            packs=tuple(pack(n) for n in numbers),
            tokens={},
            supervised={},
            language_share_target=0.0,
            cursor_after={"step": step},
        )
        yield plan, (micro(step, 0, (begin, begin + 1)), micro(step, 1, (begin + 2,)))


def loader(
    plan_steps, *, workers: int, faults: bool = False, reader: Reader | None = None
) -> StepLoader:
    return StepLoader(
        plan_steps,
        dataset=dataset(faults=faults, reader=reader),
        workers=workers,
        prefetch_steps=2,
    )


def facts(batches):
    return [
        (plan.step, [(m.pack_numbers, m.pack_digests, m.ids.tolist()) for m in micros])
        for plan, micros in batches
    ]


def no_workers_left() -> bool:
    gc.collect()
    deadline = time.monotonic() + 60
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not multiprocessing.active_children()


def test_steps_and_micro_batches_in_order():
    seen = list(loader(steps(), workers=0))
    assert [plan.step for plan, _ in seen] == list(range(1, 9))
    assert [[m.pack_numbers for m in micros] for _, micros in seen[:2]] == [
        [(0, 1), (2,)],
        [(3, 4), (5,)],
    ]
    batch = seen[1][1][0]
    assert batch.ids[:, 2].tolist() == [13, 14]
    assert batch.images[:, 0, 0].tolist() == [[3, 3, 3], [4, 4, 4]]


def test_any_number_of_workers_gives_the_same_and_they_end():
    alone = facts(loader(steps(), workers=0))
    for workers in (1, 2):
        assert facts(loader(steps(), workers=workers)) == alone
    assert no_workers_left()


def test_leaving_early_ends_the_workers():
    iterator = iter(loader(steps(), workers=1))
    next(iterator)
    assert multiprocessing.active_children()
    iterator.close()
    assert no_workers_left()


def test_nothing_is_planned_further_ahead_than_asked():
    taken = []

    def watched():
        for item in steps():
            taken.append(item[0].step)
            yield item

    iterator = iter(loader(watched(), workers=0))
    next(iterator)
    # A thread reads two steps of two micro-batches ahead.
    deadline = time.monotonic() + 30
    while len(taken) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert taken == [1, 2, 3]
    iterator.close()
    assert not [t for t in threading.enumerate() if t.name == "read-ahead"]


def test_without_prefetch_nothing_is_ahead_and_no_thread_runs():
    taken = []

    def watched():
        for item in steps():
            taken.append(item[0].step)
            yield item

    alone = StepLoader(watched(), dataset=dataset(), workers=0, prefetch_steps=0)
    iterator = iter(alone)
    first = next(iterator)
    assert taken == [1]
    assert not [t for t in threading.enumerate() if t.name == "read-ahead"]
    assert facts([first, *iterator]) == facts(loader(steps(), workers=0))


def test_reading_goes_on_while_the_trainer_is_busy():
    seen: list[int] = []

    class Watched(Reader):
        def read_piece(self, source: int, piece: int) -> Example:
            seen.append(piece)
            return super().read_piece(source, piece)

    watched = dataset(reader=Watched(faults=False))
    iterator = iter(StepLoader(steps(), dataset=watched, workers=0, prefetch_steps=2))
    next(iterator)
    deadline = time.monotonic() + 30
    while 8 not in seen and time.monotonic() < deadline:  # the last piece of the third step
        time.sleep(0.01)
    assert seen[:9] == list(range(9))
    iterator.close()


def test_no_steps():
    assert list(loader(iter(()), workers=0)) == []


def test_the_global_generator_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    list(loader(steps(last=3), workers=0))
    assert torch.equal(torch.rand(1), expected)


def test_bad_records_are_holes_with_faults():
    seen = [m for _, micros in loader(steps(3, 9), workers=0, faults=True) for m in micros]
    faults = [fault for batch in seen for fault in batch.faults]
    assert [(f.origin.key, f.reason, f.action) for f in faults] == [
        (f"k{BAD}", "bad_json", "hole"),
        (f"k{BROKEN}", "not_an_image", "hole"),
    ]
    assert sum(batch.num_images for batch in seen) == 4
    assert [batch.pack_numbers for batch in seen] == [(3, 4), (5,), (6, 7), (8,)]


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_name_what_was_read(workers):
    with pytest.raises(DataError, match=r"s0:0\.tar:k9: .*run launch/prepare.py again") as error:
        list(loader(steps(9, 12), workers=workers, faults=True))
    assert "(step 1, micro-batch 0, packs 9, 10)" in str(error.value)
    assert "Traceback" not in str(error.value)
    del error
    assert no_workers_left()


@pytest.mark.parametrize("workers", [0, 1])
def test_our_own_errors_name_it_too(workers):
    with pytest.raises(ZeroDivisionError, match="ours") as error:
        list(loader(steps(BUG, BUG + 3), workers=workers, faults=True))
    told = str(error.value) + "".join(getattr(error.value, "__notes__", []))
    assert f"while reading s0:0.tar:k{BUG}" in told
    assert f"in step 1, micro-batch 0, packs {BUG}, {BUG + 1}" in told


def test_workers_are_not_forked_from_this_process():
    probe = StepLoader(steps(last=3), dataset=ParentDataset(), workers=1, prefetch_steps=1)
    ((_, micros),) = list(probe)
    assert micros[0].pack_numbers[0] not in (os.getpid(), 0)
    assert micros[0].pack_numbers[1] != os.getpid()


class ParentDataset(MicroBatchDataset):
    """Says its own and its parent's process number in place of pack numbers."""

    def __init__(self) -> None:
        self._inner = dataset()

    def __getitem__(self, plan):
        return dataclasses.replace(self._inner[plan], pack_numbers=(os.getpid(), os.getppid()))


class Gated(Reader):
    """A store that does not give piece 5 before ``gate`` exists."""

    def __init__(self, gate: Path) -> None:
        super().__init__(faults=False)
        self.gate = gate

    def read_piece(self, source: int, piece: int) -> Example:
        while piece == 5 and not self.gate.exists():
            time.sleep(0.01)
        return super().read_piece(source, piece)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_waited_for_is_named(workers, tmp_path):
    """By pack, shard and key, while it does not come; asked from another thread."""
    stuck = loader(steps(), workers=workers, reader=Gated(tmp_path / "gate"))
    assert stuck.waiting_for() == ""
    seen = []
    thread = threading.Thread(target=lambda: seen.extend(stuck))
    thread.start()
    deadline = time.monotonic() + 60
    while (told := stuck.waiting_for()) != "step 2, micro-batch 1: pack 5: s0:0.tar:k5":
        assert time.monotonic() < deadline, told
        time.sleep(0.01)
    (tmp_path / "gate").touch()
    thread.join(timeout=60)
    assert len(seen) == 8
    assert stuck.waiting_for() == ""


def test_a_large_micro_batch_is_named_in_short():
    told = dataset().describe(micro(4, 0, tuple(range(9, 19))))
    assert told.startswith("step 4, micro-batch 0: pack 9: s0:0.tar:k9; pack 10: s0:0.tar:k10; ")
    assert told.endswith("k16; 2 more packs")


def test_signals_to_stop_do_not_reach_the_workers():
    """Launchers send SIGTERM to every process of a job; what is being read is still wanted."""
    iterator = iter(loader(steps(), workers=1))
    first = next(iterator)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.kill(worker.pid, number)
    assert facts([first, *iterator]) == facts(loader(steps(), workers=0))
    assert no_workers_left()


UNCLOSED = """
import sys
sys.path[:0] = [{folder!r}]
import test_loader
if __name__ == "__main__":
    kept = iter(test_loader.loader(test_loader.steps(), workers=1))
    next(kept)
    sys.exit(75)
"""


def test_an_iterator_that_nobody_closes_does_not_hold_the_process(tmp_path):
    script = tmp_path / "unclosed.py"
    script.write_text(UNCLOSED.format(folder=str(Path(__file__).parent)))
    done = subprocess.run([sys.executable, str(script)], timeout=100, check=False)
    assert done.returncode == 75


KILLED = """
import multiprocessing, multiprocessing.forkserver, os, signal, sys
sys.path[:0] = [{folder!r}]
import test_loader
if __name__ == "__main__":
    kept = iter(test_loader.loader(test_loader.steps(), workers=1))
    next(kept)
    (worker,) = multiprocessing.active_children()
    print(worker.pid, multiprocessing.forkserver._forkserver._forkserver_pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def is_there(process: int) -> bool:
    """And no zombie, which holds nothing."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")")[-1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_killed_process_leaves_no_workers_behind(tmp_path):
    """Each would keep its memory for ever, and a run that is killed often fills the node."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(folder=str(Path(__file__).parent)))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        worker, server = map(int, started.stdout.readline().split())
        assert started.wait(timeout=100) == -signal.SIGKILL
        deadline = time.monotonic() + 60
        while is_there(worker) or is_there(server):
            assert time.monotonic() < deadline, "a worker outlives the process that it reads for"
            time.sleep(0.05)
