"""The benchmarks run, print their goals and write their figures (in small)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("plan_fill", "plan_ratio", "plan_balance", "plan_shuffle", "plan_speed"),
        *("checkpoint_stall", "checkpoint_bytes", "peak_memory", "experts_grouped"),
    ],
)
def test_it_runs_and_writes_its_figures(name: str, tmp_path: Path) -> None:
    command = [sys.executable, f"benchmarks/{name}.py", "--quick", "--out", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    written = json.loads((tmp_path / f"{name}.json").read_text())
    assert written["benchmark"] == name
    assert written["figures"]
    for goal, row in written["goals"].items():
        assert f"{goal}: " in ended.stdout
        assert row["wanted"].startswith((">=", "<="))
    assert (tmp_path / f"{name}.png").stat().st_size > 1000
