"""The benchmarks of the reader run, print their goals and write their figures (in small); waits are
added up as by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["raw", "decode", "loader", "prepare"])
def test_it_runs_and_writes_its_figures(name: str, tmp_path: Path) -> None:
    command = [sys.executable, f"benchmarks/reader_{name}.py", "--quick", "--out", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    written = json.loads((tmp_path / f"reader_{name}.json").read_text())
    assert written["benchmark"] == f"reader_{name}"
    assert written["figures"]
    for goal in written["goals"]:
        assert f"{goal}: " in ended.stdout
    assert (tmp_path / f"reader_{name}.png").stat().st_size > 1000


def test_waiting_of_each_run(tmp_path: Path) -> None:
    row = {
        "schema": 1,
        "step": 1,
        "time": 0.0,
        "stage": "align",
        "loss": 1.0,
        "lr": {},
        "grad_norm": 1.0,
        "modality": None,
        "tokens": {},
        "planned_tokens": {},
        "supervised": {},
        "images": 0,
        "packs": 1,
        "holes": 0,
        "language_share_target": 0.0,
        "language_share_realised": None,
        "digest": "",
        "chain": "",
        "skipped": False,
    }
    times = {"a": [(1.0, 0.06), (3.0, 0.02)], "b": [(2.0, 0.02)]}
    for name, steps in times.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        lines = [json.dumps({**row, "seconds": s, "data_wait_seconds": w}) for s, w in steps]
        (tmp_path / "runs" / name / "steps.jsonl").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "benchmarks/data_wait.py", str(tmp_path / "runs")]
    command += ["--out", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    written = json.loads((tmp_path / "data_wait.json").read_text())
    goals = {name: (goal["found"], goal["reached"]) for name, goal in written["goals"].items()}
    assert goals == {
        "share of the time of a's steps": (pytest.approx(0.02), False),
        "share of the time of b's steps": (pytest.approx(0.01), True),
    }
    assert written["figures"]["a"]["longest_wait_ms"] == pytest.approx(60)

    command[2] = str(tmp_path / "none")
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "has a steps.jsonl; train first" in ended.stderr
