"""Trap 3: the gradient of a global step is that of plain torch with one document at a time,
whatever the ranks, the accumulation, the packing, the spread of pictures and labels, and the ZeRO
stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(1900)
@pytest.mark.parametrize(
    "processes",
    [
        pytest.param(1, id="1 rank x 4 micro-batches", marks=pytest.mark.slow),
        pytest.param(2, id="2 x 2"),
        pytest.param(4, id="4 x 1", marks=pytest.mark.slow),
    ],
)
def test_gradients_are_those_of_plain_torch(tmp_path: Path, processes: int) -> None:
    out = tmp_path / "rows.json"
    script = Path(__file__).with_name("gradient_table.py")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc_per_node={processes}", str(script), str(out)),
        ],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    rows = json.loads(out.read_text())
    assert len({row["cell"] for row in rows}) == 3 * 4 * 2
    for row in rows:
        assert row["loss"] == pytest.approx(row["expected_loss"], abs=1e-5), row
        assert row["largest"] > 0.01, "gradients too small to compare"
        assert row["difference"] <= 1e-5, row
