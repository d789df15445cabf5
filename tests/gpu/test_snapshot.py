"""A checkpoint's snapshot of what lies on a GPU: it has the last update, it goes beside the kernels
of the next step, and the update after that does not reach it. Run by hand on a machine with a GPU:
pytest -m gpu tests/gpu."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoint_samples import manifest, store

from vltrain.checkpoint.background import BackgroundWriter
from vltrain.engine.fragments import Fragment, FragmentKind

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
ELEMENTS = 1 << 24
SECONDS_OF_CYCLES = 2_000_000_000
"""GPU clock cycles: about a second."""
KINDS = (FragmentKind.master, FragmentKind.exp_avg, FragmentKind.exp_avg_sq)


def never() -> None: ...


def exported(weight: torch.Tensor) -> Iterator[Fragment]:
    """As vltrain.engine.fragments copies it: the snapshot is of the values at the copy."""
    for kind in KINDS:
        values = weight.to("cpu", torch.float32, copy=True)
        yield Fragment(name="adaptor.weight", kind=kind, offset=0, values=values)


def begin_save(writer: BackgroundWriter, weight: torch.Tensor, *, step: int) -> None:
    writer.save(
        manifest(step),
        exported(weight),
        tensor_digests={},
        texts={},
        rng={},
        waiting=never,
    )


def test_the_snapshot_lies_between_two_updates_and_beside_the_step_in_between(
    tmp_path: Path,
) -> None:
    torch.cuda.init()
    checkpoints = store(tmp_path)
    writer = BackgroundWriter(checkpoints, group=None)
    weight = torch.zeros(ELEMENTS, device="cuda")
    for step in (1, 2, 3):
        torch.cuda._sleep(SECONDS_OF_CYCLES)  # the update comes late: the copy must wait for it
        weight.fill_(float(step))
        begin_save(writer, weight, step=step)
        torch.cuda._sleep(5 * SECONDS_OF_CYCLES)  # forward and backward of the next step
        computed = torch.cuda.Event()
        computed.record()
        writer.copied(waiting=never)
        assert not computed.query(), "the copies waited for what they should go beside"
        weight.fill_(-1.0)  # the next update
        writer.settle(waiting=never)
        saved = checkpoints.newest()
        assert saved is not None
        read = saved.reader()
        for kind in KINDS:
            values = read("adaptor.weight", kind, 0, ELEMENTS)
            assert torch.equal(values, torch.full((ELEMENTS,), float(step)))


def test_bf16_values_on_the_gpu_are_copied_whole(tmp_path: Path) -> None:
    """The cast needs memory of the copies' own stream, which must not be used again too early."""
    torch.cuda.init()
    checkpoints = store(tmp_path)
    writer = BackgroundWriter(checkpoints, group=None)
    weight = torch.arange(256, device="cuda").to(torch.bfloat16).repeat(ELEMENTS // 256)
    begin_save(writer, weight, step=1)
    for _ in range(50):  # the allocator's memory is given out and written to again and again
        torch.full((ELEMENTS,), 7.0, device="cuda")
    writer.copied(waiting=never)
    writer.settle(waiting=never)
    saved = checkpoints.newest()
    assert saved is not None
    wanted = torch.arange(256).float().repeat(ELEMENTS // 256)
    for kind in KINDS:
        assert torch.equal(saved.reader()("adaptor.weight", kind, 0, ELEMENTS), wanted)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_process_of_the_second_gpu_takes_nothing_of_the_first(tmp_path: Path) -> None:
    """A context on a GPU costs hundreds of MB of it; eight processes would each take them."""
    script = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "import test_snapshot as t\n"
        "torch.cuda.set_device(1)\n"
        "weight = torch.ones(1024, device='cuda')\n"
        "writer = t.BackgroundWriter(t.store(Path(sys.argv[1])), group=None)\n"
        "t.begin_save(writer, weight, step=1)\n"
        "writer.settle(waiting=t.never)\n"
        "has_context = torch._C._cuda_hasPrimaryContext\n"
        "assert has_context(1) and not has_context(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={"PYTHONPATH": ":".join([str(Path(__file__).parent), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
