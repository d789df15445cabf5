"""What a run that goes on says of a config that is not what it began with."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest
from checkpoint_samples import manifest

from vltrain.assemble.identity import CONFIG, warn_of_changes
from vltrain.checkpoint.store import Checkpoint
from vltrain.runconfig import to_yaml


@pytest.mark.parametrize(
    ("given", "warned"), [("runs/other", True), ("runs/demo/stage1", False), (None, False)]
)
def test_another_start_is_not_ignored_in_silence(
    compose, tmp_path: Path, caplog: pytest.LogCaptureFixture, given: str | None, warned: bool
) -> None:
    began = compose("stage=2", "+experiment=demo", "init_from=runs/demo/stage1")
    (tmp_path / CONFIG).write_text(to_yaml(began))
    checkpoint = Checkpoint(directory=tmp_path, manifest=manifest(7))
    with caplog.at_level(logging.WARNING):
        warn_of_changes(dataclasses.replace(began, init_from=given), checkpoint)
    assert bool(caplog.records) is warned
    if warned:
        said = caplog.text
        assert f"init_from={given} is not read: {tmp_path} goes on from its step 7" in said
        assert "runs/demo/stage1" in said
        assert "another run.name" in said


def test_other_numbers_of_the_optimizer_are_said(
    compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    began = compose("stage=2", "+experiment=demo", "optim.lr=0.001")
    (tmp_path / CONFIG).write_text(to_yaml(began))
    now = dataclasses.replace(began, optim=dataclasses.replace(began.optim, lr=0.002))
    with caplog.at_level(logging.WARNING):
        warn_of_changes(now, Checkpoint(directory=tmp_path, manifest=manifest(7)))
    assert "goes on with other values (optim.lr: 0.001 there, 0.002 here)" in caplog.text
