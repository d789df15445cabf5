"""Traps 1, 4, 11 and 16 with real models: ranks that differ in pictures, labels and loss chunks
train as one process would, under every ZeRO stage, with every part's layers recomputed; so do those
that differ in the experts that their tokens use, whose loads are added up; and what is frozen moves
not a bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from model_choices import TABLE, overrides, trained_tower


def check(out: Path, *, cases: list[dict], timeout_seconds: int) -> None:
    script = Path(__file__).with_name("model_training.py")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *(str(script), str(out), "[0, 1, 2, 3]", json.dumps(cases)),
        ],
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    found = json.loads(out.read_text())
    assert len(found) == len(cases)
    for case, stages in zip(cases, found, strict=True):
        assert list(stages) == ["0", "1", "2", "3"]
        for stage, rows in stages.items():
            assert len(rows) == 4
            assert rows[0]["loss"] == pytest.approx(6.28, abs=0.1)  # ln 512, its spread at init
            assert rows[0]["loss"] != rows[1]["loss"]
            for step, row in enumerate(rows):
                where = f"{case}, ZeRO {stage}, step {step}: {row}"
                assert row["moved"] > 1e-3, where
                assert row["difference"] < 1e-6, where
                assert row["frozen_moved"] == 0, where
                assert row["corrections_apart"] == 0, where
                assert (row["corrections_moved"] > 0) == (case["model"] == "tiny_vl2"), where
                if case["model"] == "tiny_vl2" and step == 1:  # equal tokens choose few experts
                    assert row["idle_experts"][0] > row["idle_experts"][1], where
                assert row["frozen"] > 0 or "sam" not in case["overrides"], where


def stage_1(encoder: str, kind: str) -> dict:
    return {"model": "tiny", "parts": ["adaptor"], "overrides": overrides(encoder, kind)}


def stage_3(encoder: str, kind: str) -> dict:
    parts = [*trained_tower(encoder), "adaptor", "language"]
    return {"model": "tiny", "parts": parts, "overrides": overrides(encoder, kind)}


def tiled(*parts: str) -> dict:
    """DeepSeek-VL2, with experts that only one of the ranks uses."""
    return {"model": "tiny_vl2", "parts": list(parts), "overrides": {}}


@pytest.mark.timeout(1300)
def test_ranks_that_differ_train_as_one_process(tmp_path):
    cases = [
        stage_1("siglip_sam", "hybrid_split"),
        stage_3("siglip_sam", "hybrid_split"),
        stage_3("clip", "mlp"),
        stage_3("siglip_dinov2", "pool_height"),
        tiled("siglip", "adaptor"),
        tiled("siglip", "adaptor", "language"),
    ]
    check(tmp_path / "rows.json", cases=cases, timeout_seconds=1200)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", [stage_1, stage_3])
def test_every_tower_and_adaptor_trains_as_one_process(tmp_path, stage):
    cases = [stage(encoder, kind) for encoder, kind in TABLE]
    check(tmp_path / "rows.json", cases=cases, timeout_seconds=3000)
