"""The 100 % of a run's MFU: the user's word first, then the table, else nothing."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from vltrain import distributed
from vltrain.assemble.recording import Recording
from vltrain.assemble.run_peak import run_peak
from vltrain.metrics.rows import StepRow

WORDS = ("stage=1", "+experiment=demo", "engine=zero1")
GPU = torch.device("cuda", 0)


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch):
    """A GPU of this name, as CUDA would give it."""

    def name(words: str) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: words)

    return name


def test_a_known_device_has_its_peak(compose, named) -> None:
    named("NVIDIA A100-SXM4-80GB")
    assert run_peak(compose(*WORDS), GPU) == 312e12


def test_all_ranks_are_counted_and_one_unknown_leaves_none(
    compose, named, monkeypatch, caplog
) -> None:
    named("NVIDIA A100-SXM4-80GB")
    other = ("NVIDIA H100 PCIe", 756e12)
    monkeypatch.setattr(distributed, "gather_objects", lambda own: [own, other])
    assert run_peak(compose(*WORDS), GPU) == 1068e12
    other = ("NVIDIA T4", None)
    with caplog.at_level(logging.INFO, logger="vltrain"):
        assert run_peak(compose(*WORDS), GPU) is None
    assert "what NVIDIA T4 can do in bf16 is not known" in caplog.text


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("NVIDIA T4", (), "what NVIDIA T4 can do in bf16 is not known here; set metrics.peak"),
        ("NVIDIA H200", ("engine.dtype=fp32",), "what NVIDIA H200 can do in fp32 is not known"),
    ],
)
def test_an_unknown_peak_is_said_once(compose, named, caplog, name, more, said) -> None:
    named(name)
    with caplog.at_level(logging.INFO, logger="vltrain"):
        assert run_peak(compose(*WORDS, *more), GPU) is None
    assert said in caplog.text


def test_a_cpu_has_none_unless_the_user_says_so(compose, caplog) -> None:
    cpu = torch.device("cpu")
    with caplog.at_level(logging.INFO, logger="vltrain"):
        assert run_peak(compose(*WORDS), cpu) is None
    assert caplog.text == ""
    with caplog.at_level(logging.INFO, logger="vltrain"):
        assert run_peak(compose(*WORDS, "metrics.peak_tflops=0.5"), cpu) == 0.5e12
    assert "MFU: of 0.5 TFLOP/s, what all devices can do at most" in caplog.text


def test_the_users_word_goes_before_the_table(compose, named) -> None:
    named("NVIDIA H200")
    words = (*WORDS, "engine.dtype=fp32", "metrics.peak_tflops=67")
    assert run_peak(compose(*words), GPU) == 67e12


def test_rows_are_recorded_with_their_mfu(compose, tmp_path) -> None:
    config = compose(*WORDS, f"run.root={tmp_path}", "metrics.wandb.enabled=false")
    config.run_dir.mkdir()
    recording = Recording(config, resumed=None, peak_flops=4e12)
    values = dict.fromkeys(StepRow.__dataclass_fields__)
    values |= {"step": 1, "stage": "align", "lr": {}, "seconds": 2.0, "model_flops": 2e12}
    values |= {"tokens": {}, "supervised": {}, "images": 0, "holes": 0, "skipped": False}
    recording.row(StepRow(**{**values, "data_wait_seconds": 0.0}))  # type: ignore[arg-type]
    recording.close()
    written = (config.run_dir / "steps.jsonl").read_text(encoding="utf-8")
    assert json.loads(written)["mfu"] == 0.25
