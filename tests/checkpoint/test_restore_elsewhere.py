"""Saved by two processes at one ZeRO stage, restored by another number at another stage."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
import toy_training as toy

SIX = ["image", "text", "text", "image", "text", "text"]
STEPS = [SIX, ["text"] * 6, SIX]
MORE = [["text"] * 6, SIX]


def assert_same_training(found: list[dict], expected: list[dict], *, tolerance: float) -> None:
    for row, wanted in zip(found, expected, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=tolerance)
        assert row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=tolerance)
        assert row["moved"] == pytest.approx(wanted["moved"], rel=tolerance, abs=1e-6)


# Processes that restore: what was saved, and the engine that goes on with it.
PAIRS = {
    1: [
        ["zero1", {"zero_stage": 0}],
        ["zero2", {"zero_stage": 3}],
        ["zero3", {"zero_stage": 1}],
        ["bf16_zero3", {"zero_stage": 1, "dtype": "bf16"}],
        ["rounded_zero2", {"zero_stage": 0, "moments": "bf16"}],
    ],
    2: [
        ["zero1", {"zero_stage": 1}],
        ["zero3", {"zero_stage": 3}],
        ["bf16_zero1", {"zero_stage": 1, "dtype": "bf16"}],
        ["bf16_zero2", {"zero_stage": 2, "dtype": "bf16"}],
        ["rounded_zero2", {"zero_stage": 2, "moments": "bf16"}],
        ["rounded_bf16_zero1", {"zero_stage": 1, "dtype": "bf16", "moments": "bf16"}],
    ],
    3: [
        ["zero0", {"zero_stage": 2}],
        ["zero1", {"zero_stage": 3}],
        ["zero3", {"zero_stage": 2}],
        ["zero2", {"zero_stage": 0}],
        ["bf16_zero1", {"zero_stage": 2, "dtype": "bf16"}],
        ["bf16_zero2", {"zero_stage": 3, "dtype": "bf16"}],
        ["rounded_zero2", {"zero_stage": 3, "moments": "bf16"}],
    ],
}


@pytest.mark.parametrize(
    "numbers",
    [pytest.param([3], id="3"), pytest.param([1, 2], id="1 and 2", marks=pytest.mark.slow)],
)
def test_training_goes_on_as_if_never_stopped(tmp_path: Path, numbers: list[int]) -> None:
    engines = {f"zero{n}": {"zero_stage": n} for n in range(4)}
    engines |= {f"bf16_zero{n}": {"zero_stage": n, "dtype": "bf16"} for n in (1, 2, 3)}
    engines["rounded_zero2"] = {"zero_stage": 2, "moments": "bf16"}
    engines["rounded_bf16_zero1"] = {"zero_stage": 1, "dtype": "bf16", "moments": "bf16"}
    root = str(tmp_path / "run")
    saved = toy.launch(
        "save",
        tmp_path / "save",
        {"engines": engines, "steps": STEPS, "more": MORE, "root": root},
        processes=2,
    )[0]
    for name in engines:
        assert saved[f"{name} again"] == saved[name], "a rollback in the running process"
    assert saved["rounded_zero2"] != saved["zero2"], "moments were not rounded"
    assert_same_training(saved["rounded_zero2"], saved["zero2"], tolerance=0.02)
    for processes in numbers:
        results = toy.launch(
            "restore",
            tmp_path / f"restore-{processes}",
            {"pairs": PAIRS[processes], "more": MORE, "root": root},
            processes=processes,
        )
        for (name, _), rows in zip(PAIRS[processes], results[0], strict=True):
            if processes == 2:  # nothing changed: equal to the last bit
                assert rows == saved[name]
            tolerance = 2e-5 if name.startswith("zero") else 0.02
            assert_same_training(rows, saved[name], tolerance=tolerance)
