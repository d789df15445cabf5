"""Commands as a user types them, run in a workspace of their own, never hanging."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir

from vltrain.assemble.datapath import build_encoder, open_tokenizer, sources_to_prepare
from vltrain.data.prepare import prepare_sources
from vltrain.runconfig import RunConfig, clean_arguments, from_hydra, register_schema

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
NOT_INHERITED = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("WANDB_MODE", "WANDB_API_KEY", "WANDB_DISABLED"),
)


# The demo's own words, with a model and steps of test size; sequences are longer than the demo's
# because 512 tokens spell longer.
DEMO = (
    "+experiment=demo",
    "model=tiny",
    "model.weights.allow_random=false",
    "data.packing.sequence_length=512",
    "data.packing.window_samples=32",
    "data.mixture.ramp.steps=2",
    "data.batch.sequences=4",
    "data.batch.micro=2",
    "optim.steps=6",
    "optim.schedule.warmup_steps=1",
    "optim.lr=1e-3",
    "checkpoint.every_steps=4",
)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a command left. ``code``: exit code (negative: killed by that signal)."""

    code: int
    out: str
    err: str

    def said(self, text: str) -> int:
        """How often the command said ``text``."""
        return (self.out + self.err).count(text)


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The three stages as they ran; ``runs`` and ``finished`` by stage number."""

    runs: dict[int, Path]
    finished: dict[int, Finished]


def demo_texts(workspace: Path) -> Iterator[str]:
    """The text of the demo's training shards."""
    for shard in sorted((workspace / "data/demo").glob("*/train/*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                if stream is not None and member.name.endswith((".txt", ".json")):
                    yield stream.read().decode("utf-8")


def composed(*words: str) -> RunConfig:
    """The config of ``launch/train.py words``."""
    register_schema()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return from_hydra(compose("train", overrides=clean_arguments(words)))


def prepare_here(workspace: Path, *words: str) -> None:
    """What launch/prepare.py does, in this process."""
    config = composed(*words)
    with contextlib.chdir(workspace):
        encoder = build_encoder(config, open_tokenizer(config))
        prepare_sources(
            sources_to_prepare(config),
            encoder_for=lambda source: encoder,
            workers=0,
            faults=config.data.faults,
        )


def deepspeed(*options: str) -> tuple[str, ...]:
    """``deepspeed OPTIONS``, on a port that nobody else uses."""
    return (str(BIN / "deepspeed"), "--master_port", str(free_port()), *options)


def torchrun(*options: str) -> tuple[str, ...]:
    return (str(BIN / "torchrun"), "--standalone", *options)


def python() -> tuple[str, ...]:
    return (sys.executable,)


def free_port() -> int:
    """Below the ports that the system gives to whoever asks for any, so that nobody gets it between
    now and when it is used."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def launch(
    launcher: tuple[str, ...],
    *words: str,
    cwd: Path,
    script: str = "launch/train.py",
    kill_when: Callable[[], bool] | None = None,
    seconds: float = 400,
    added: Mapping[str, str] | None = None,
    obeys_modes: bool = False,
) -> Finished:
    """Run ``launcher script words`` to its end, or SIGKILL all its processes at once as soon as
    ``kill_when()`` holds (or ``seconds`` are over). added: to the environment. obeys_modes: what a
    file's mode forbids is forbidden, also to root."""
    logs = [cwd / "launch.out", cwd / "launch.err"]
    with logs[0].open("w") as out, logs[1].open("w") as err:
        process = subprocess.Popen(
            [*launcher, script, *words],
            cwd=cwd,
            env={**environment(), **(added or {})},
            stdout=out,
            stderr=err,
            start_new_session=True,
            preexec_fn=_obey_modes if obeys_modes else None,
        )
        end = time.monotonic() + seconds
        while process.poll() is None:
            if time.monotonic() > end or (kill_when is not None and kill_when()):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                break
            time.sleep(0.01)
    return Finished(code=process.returncode, out=logs[0].read_text(), err=logs[1].read_text())


def _obey_modes() -> None:
    """In a child, before its program starts: give up what lets root pass (CAP_DAC_OVERRIDE)."""
    drop_from_bounding_set, may_pass = 24, 1
    ctypes.CDLL(None).prctl(drop_from_bounding_set, may_pass, 0, 0, 0)


class Ranks:
    """Two processes of one run started by hand, as Slurm would: each exit code can be seen and each
    process be sent signals. largest_file: bytes, beyond which they cannot write any file, as on a
    full disk. A context: nothing outlives it."""

    def __init__(self, *words: str, cwd: Path, largest_file: int | None = None) -> None:
        self._logs = [cwd / f"rank-{rank}.err" for rank in (0, 1)]
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "launch/train.py", *words],
                cwd=cwd,
                env={**environment(), **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.DEVNULL,
                stderr=log.open("w"),
            )
            for rank, log in enumerate(self._logs)
        ]
        if largest_file is not None:
            for process in self.processes:
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest_file, largest_file))

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def wait_for(self, true: Callable[[], bool], *, seconds: float = 400) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, self.said(0) + self.said(1)
            assert all(p.poll() is None for p in self.processes), self.said(0) + self.said(1)
            time.sleep(0.02)

    def codes(self, *, seconds: float = 300) -> list[int]:
        """Exit codes, once all have ended (a hang is no end); pytest -rP shows how long that
        took."""
        begin = time.monotonic()
        codes = [process.wait(timeout=seconds) for process in self.processes]
        print(f"ended after {time.monotonic() - begin:.1f} s with {codes}")
        return codes

    def said(self, rank: int) -> str:
        return self._logs[rank].read_text()


def environment() -> Mapping[str, str]:
    """This process's, less what a launcher or wandb would take from it."""
    kept = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    return kept | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "NETRC": os.devnull}


def rows_of(run: Path) -> list[dict]:
    """steps.jsonl of a run."""
    lines = (run / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
