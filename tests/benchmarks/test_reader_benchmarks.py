"""The benchmarks of the reader run, print their goals and write their figures (in small)."""

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
