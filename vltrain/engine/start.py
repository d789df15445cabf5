"""Processes and their groups: the first thing that a run does.

In: the engine's config. Out: an initialised process group (gloo on a CPU, NCCL on GPUs), the
control group of ``vltrain.distributed``, and the device of this process. Works under the
``deepspeed`` launcher, torchrun and plain ``python`` (then this process is a world of one on
loopback).

DeepSpeed compiles a C++ operator for shared-memory reductions at the first start on a CPU: over two
minutes, and a killed build leaves a lock on which every later build waits for ever. We need no
compiled operator, so that one is turned off (gloo is as fast at our sizes), and a lock that some
other program left is named in a warning.
"""

from __future__ import annotations

import datetime
import logging
import os
import warnings
from pathlib import Path

import deepspeed
import deepspeed.ops
import torch
from deepspeed.accelerator import get_accelerator
from torch.utils.cpp_extension import get_default_build_root

from vltrain import distributed
from vltrain.engine.config import EngineConfig
from vltrain.errors import EngineError

log = logging.getLogger(__name__)

_LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def start(config: EngineConfig) -> torch.device:
    """Join the other processes (collective) and return the device of this one.

    Sets the launch variables where the program was started as plain ``python``. Raises EngineError
    where a launcher set only some of them, their port is taken, or a GPU lacks what the config
    asks for.
    """
    quiet_deepspeed()
    prepare_environment()
    warn_about_locks()
    device = _device()
    if device.type == "cpu":
        # Private, and the only switch there is: see the module's docstring.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        deepspeed.init_distributed(
            dist_backend=backend,
            auto_mpi_discovery=False,
            timeout=datetime.timedelta(seconds=config.timeout_seconds),
            verbose=False,
        )
    except torch.distributed.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise EngineError(
            f"Port {os.environ['MASTER_PORT']}, at which the processes of this run were to meet, "
            "is in use on this machine, as by another run. Give another one: deepspeed "
            "--master_port 29501 launch/train.py ..., or torchrun --standalone."
        ) from error
    # At the start ranks wait for the slowest to read its weights. Afterwards the watchdog sees to
    # it that nobody waits longer than ``timeout_seconds``.
    distributed.open_control_group(
        timeout_seconds=max(config.timeout_seconds, config.start_seconds)
    )
    return device


def prepare_environment() -> None:
    """Make sure that the launch variables are all there, or that this is a world of one."""
    absent = [name for name in _LAUNCH_VARIABLES if name not in os.environ]
    if not absent:
        return
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        raise EngineError(
            f"The launcher set {', '.join(v for v in _LAUNCH_VARIABLES if v in os.environ)} but "
            f"not {', '.join(absent)}. Start with `deepspeed launch/train.py ...`, `torchrun ...` "
            "or plain `python launch/train.py ...` without these variables."
        )
    os.environ.update(
        RANK="0",
        WORLD_SIZE="1",
        LOCAL_RANK="0",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0",  # a free one, when it is taken: one that is looked up may be gone by then
    )


def _device() -> torch.device:
    accelerator = get_accelerator()
    assert accelerator is not None
    if accelerator.device_name() != "cuda":
        return torch.device("cpu")
    local, found = distributed.local_rank(), torch.cuda.device_count()
    if local >= found:
        raise EngineError(
            f"This is process {local} of its node, which has {found} GPU(s): start one process a "
            f"GPU (--num_gpus {found}), or set DS_ACCELERATOR=cpu to train on the CPU."
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def quiet_deepspeed() -> None:
    """DeepSpeed's own messages below warning level, everywhere, in this one place."""
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    for handler in logger.handlers:
        handler.setLevel(logging.WARNING)
    # DeepSpeed calls torch.distributed names that torch has renamed; nothing a user can act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


def find_locks() -> list[Path]:
    """Lock files of torch's extension builder: TORCH_EXTENSIONS_DIR/<operator>/lock, or
    <user cache>/torch_extensions/<python and device>/<operator>/lock."""
    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    if chosen:
        return sorted(Path(chosen).glob("*/lock"))
    return sorted(Path(get_default_build_root()).glob("*/*/lock"))


def warn_about_locks() -> None:
    """Name locks of unfinished builds: whatever compiles that operator next waits on them for
    ever."""
    if distributed.local_rank() != 0:
        return
    for lock in find_locks():
        log.warning(
            "A build of the operator %s was started and not finished: %s exists. vltrain does not "
            "compile it, but any program that does will wait for ever. If no build is running, "
            "delete "
            "the folder %s.",
            lock.parent.name,
            lock,
            lock.parent,
        )
