"""A workspace as a user has it after the first steps of ``make quickstart``, in small: real data
sets of a few records, a tiny tokenizer, random tiny weights in published layouts, and the launch
scripts."""

from __future__ import annotations

import logging
import os
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hydra.core.global_hydra import GlobalHydra
from launching import (
    DEMO,
    NOT_INHERITED,
    ROOT,
    Finished,
    Stages,
    deepspeed,
    demo_texts,
    launch,
    prepare_here,
    python,
)
from model_yaml import model_config

from data_recipes.demo import write_demo
from vltrain import distributed
from vltrain.models.build import build_model
from vltrain.models.export_part import export_part
from vltrain.processing.train_tokenizer import train_bpe

RECORDS = 24


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/demo and runs/demo/warm_start, as ``make quickstart`` would leave them."""
    root = tmp_path_factory.mktemp("workspace")
    (root / "launch").symlink_to(ROOT / "launch")
    for _ in write_demo(root / "data/demo", limit=RECORDS):
        pass
    warm = root / "runs/demo/warm_start"
    train_bpe(demo_texts(root), vocab_size=512, directory=warm / "language")
    write_weights(warm, seed=7)
    write_weights(root / "other", seed=8)
    write_weights(root / "runs/demo/tiled_parts", seed=9, model="tiny_vl2")
    return root


def write_weights(directory: Path, *, seed: int, model: str = "tiny") -> None:
    """Random tiny towers and language model, each in its published layout. Where the routers choose
    experts with corrections, those of the first expert are a quarter."""
    config = model_config(model)
    built = build_model(
        config,
        trainable=(),
        freeze=(),
        dtype=torch.float32,
        frozen_dtype=torch.float32,
        device="cpu",
        seed=seed,
    )
    for part in (*config.towers, "language"):
        state = built.part_state(part)
        for name in state.keys() - dict(built.named_parameters()).keys():
            state[name] = torch.tensor([0.25] + [0.0] * (len(state[name]) - 1))
        export_part(directory / part, config=config, part=part, state=state)


@pytest.fixture(scope="session")
def stages(workspace: Path) -> Stages:
    """prepare and train each stage, two processes, every command as a user types it."""
    runs = {number: workspace / f"runs/demo/stage{number}" for number in (1, 2, 3)}
    finished = {}
    prepared = launch(python(), "stage=1", *DEMO, cwd=workspace, script="launch/prepare.py")
    assert prepared.code == 0, prepared.err
    for number in runs:
        words = (f"stage={number}", *DEMO)
        prepare_here(workspace, *words)
        finished[number] = launch(deepspeed("--num_gpus", "2"), *words, cwd=workspace)
        assert finished[number].code == 0, finished[number].err
    return Stages(runs=runs, finished=finished)


@pytest.fixture
def in_process(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Finished]]:
    """``in_process("stage=1", ..., script="train")``: the script, run here to save the time that a
    process needs to start. Everything that a process would take with it is put back."""
    monkeypatch.chdir(workspace)
    monkeypatch.syspath_prepend(str(ROOT / "launch"))
    before = dict(os.environ)
    loggers = [logging.getLogger(n) for n in ("vltrain", "stages", "launch", "data_recipes")]
    states = [(log, list(log.handlers), log.propagate, log.level) for log in loggers]

    def run(*words: str, script: str = "train") -> Finished:
        for name in NOT_INHERITED:
            os.environ.pop(name, None)
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *words])
        GlobalHydra.instance().clear()
        capfd.readouterr()
        code = 0
        try:
            runpy.run_path(str(ROOT / "launch" / f"{script}.py"), run_name="__main__")
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            GlobalHydra.instance().clear()
            if dist.is_initialized():
                dist.destroy_process_group()
            distributed._control = None
        out, err = capfd.readouterr()
        return Finished(code=code, out=out, err=err)

    yield run
    os.environ.clear()
    os.environ.update(before)
    for log, handlers, propagate, level in states:
        log.handlers[:], log.propagate = handlers, propagate
        log.setLevel(level)


@pytest.fixture
def refused(in_process: Callable[..., Finished]) -> Callable[..., str]:
    """``refused(words ..., script="train")``: the one clear message that the script ends with."""

    def run(*words: str, script: str = "train") -> str:
        ended = in_process(*words, script=script)
        assert ended.code == 2, ended.err
        assert "Traceback" not in ended.err
        messages = re.split(r"^error: ", ended.err, flags=re.MULTILINE)[1:]
        assert len(messages) == 1, ended.err
        return messages[0]

    return run
