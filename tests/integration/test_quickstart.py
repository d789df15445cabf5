"""The demo learns, whatever the seed: run by make test-slow (about a quarter of an hour a seed)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vltrain.evaluate.results import Point, read_points

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_quickstart_learns_to_see_and_keeps_its_language(seed: int, tmp_path: Path) -> None:
    command = [sys.executable, "launch/quickstart.py", "--seed", str(seed), "--root", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    align, pretrain, finetune = (point_of(tmp_path / f"stage{n}") for n in (1, 2, 3))
    what = finetune.questions["easy_vqa_what"]["what"]
    assert what.share >= 0.45
    assert what.share - (what.blank_share or 0.0) >= 0.20
    assert finetune.questions["digits_qa"]["mnist"].share >= 0.60
    # Stage 1 does not touch the language model, so its text loss is the warm start's.
    warm_start = align.held_out["text"].loss
    assert pretrain.held_out["text"].loss <= warm_start + 0.05
    assert finetune.held_out["text"].loss <= warm_start + 0.05
    assert (tmp_path / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demo_of_deepseek_vl2_learns_to_see(tmp_path: Path) -> None:
    command = [sys.executable, "launch/quickstart.py", "--model", "vl2", "--root", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    finetune = point_of(tmp_path / "stage3")
    questions = finetune.questions
    for source, group in (("easy_vqa_what", "what"), ("digits_qa", "mnist")):
        found = questions[source][group]
        assert found.share - (found.blank_share or 0.0) >= 0.20
    warm_start = point_of(tmp_path / "stage1").held_out["text"].loss
    assert finetune.held_out["text"].loss <= warm_start + 0.25  # 30 % text, where the other has 48


def point_of(run: Path) -> Point:
    return read_points(run)[-1]
