"""Traps 1, 4 and 16 with the real model: ranks that differ in pictures, labels and loss chunks
train as one process would, under every ZeRO stage, with layers recomputed; so do those that differ
in the experts that their tokens use, whose loads are added up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ALL = ["siglip", "adaptor", "language"]


@pytest.mark.parametrize(
    ("model", "parts"),
    [("tiny", ["adaptor"]), ("tiny", ALL), ("tiny_vl2", ALL[:2]), ("tiny_vl2", ALL)],
)
def test_ranks_that_differ_train_as_one_process(tmp_path, model, parts):
    out = tmp_path / "rows.json"
    script = Path(__file__).with_name("model_training.py")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *(str(script), str(out), "[0, 1, 2, 3]", json.dumps(parts), model),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    stages = json.loads(out.read_text())
    for stage, rows in stages.items():
        assert len(rows) == 4
        assert rows[0]["loss"] == pytest.approx(6.28, abs=0.1)
        assert rows[0]["loss"] != rows[1]["loss"]
        for step, row in enumerate(rows):
            assert row["moved"] > 1e-3
            assert row["difference"] < 1e-6, f"ZeRO {stage}, step {step}: {row}"
            assert row["corrections_apart"] == 0
            assert (row["corrections_moved"] > 0) == (model == "tiny_vl2")
