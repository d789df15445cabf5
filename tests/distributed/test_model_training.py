"""Traps 1, 4, 11 and 16 with real models: ranks that differ in pictures, labels and loss chunks
train as one process would, under every ZeRO stage, with every part's layers recomputed; so do those
that differ in the experts that their tokens use, whose loads are added up; and what is frozen moves
not a bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from model_choices import TABLE, overrides, trained_tower

EVERY_STAGE = (0, 1, 2, 3)
HANG_SECONDS = 3000
"""For hangs alone (a collective that waits ends by itself, see model_training.py): a machine that
is busy takes many times what an idle one does."""


def check(out: Path, *cases: dict) -> None:
    script = Path(__file__).with_name("model_training.py")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *(str(script), str(out), json.dumps(cases)),
        ],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    judge(cases, json.loads(out.read_text()))


def judge(cases: Sequence[dict], found: list[dict]) -> None:
    """What model_training.py wrote of them."""
    assert len(found) == len(cases)
    for case, stages in zip(cases, found, strict=True):
        assert list(stages) == [str(stage) for stage in case["zero_stages"]]
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
                assert (row["corrections_moved"] > 0) == case["corrects"], where
                if case["model"] == "tiny_vl2" and step == 1:  # equal tokens choose few experts
                    assert row["idle_experts"][0] > row["idle_experts"][1], where
                assert row["frozen"] > 0 or row["every_part_trains"], where
            assert rows[-1]["unmoved"] == [], f"{case}, ZeRO {stage}"


def case_of(
    *parts: str, model: str, overrides: dict, recompute: str, zero_stages, corrects: bool = False
) -> dict:
    """See model_training.py. corrects: whether its routers choose with corrections."""
    return {
        "corrects": corrects,
        "model": model,
        "parts": list(parts),
        "overrides": overrides,
        "recompute": recompute,
        "zero_stages": list(zero_stages),
    }


def stage_1(encoder: str, kind: str, *, zero_stages=EVERY_STAGE, recompute: str = "full") -> dict:
    return case_of(
        "adaptor",
        model="tiny",
        overrides=overrides(encoder, kind),
        recompute=recompute,
        zero_stages=zero_stages,
    )


def stage_3(encoder: str, kind: str, *, zero_stages=EVERY_STAGE, recompute: str = "full") -> dict:
    return case_of(
        *(*trained_tower(encoder), "adaptor", "language"),
        model="tiny",
        overrides=overrides(encoder, kind),
        recompute=recompute,
        zero_stages=zero_stages,
    )


GREEDY = {
    "moe": {"scoring": "softmax", "selection": "greedy", "normalise_weights": False, "scale": 1.0}
}
VARIANTS = {
    "tiny": {"language": {**GREEDY, "mla": None}, "router": {"correction_step": 0.0}},
    "small": {"language": GREEDY, "router": {"correction_step": 0.0}},
    "base": {},
}
"""Attention and routing of each released DeepSeek-VL2."""


def tiled(*parts: str, variant: str = "base", zero_stages=EVERY_STAGE) -> dict:
    """DeepSeek-VL2, with experts that only one of the ranks uses."""
    return case_of(
        *parts,
        model="tiny_vl2",
        overrides=VARIANTS[variant],
        recompute="full",
        zero_stages=zero_stages,
        corrects=variant == "base",
    )


@pytest.mark.timeout(HANG_SECONDS + 100)
def test_ranks_that_differ_train_as_one_process(tmp_path):
    """A sample of the whole table below: each family of models, each ZeRO stage, each adaptor that
    changes the order of parts or tokens, and selective recomputation."""
    check(
        tmp_path / "rows.json",
        stage_1("siglip_sam", "hybrid_split", zero_stages=[2, 3]),
        stage_3("siglip_sam", "hybrid_split"),
        stage_3("siglip_sam", "separate", zero_stages=[3], recompute="selective"),
        stage_3("clip", "mlp", zero_stages=[3]),
        stage_3("siglip_dinov2", "pool_height", zero_stages=[3]),
        tiled("siglip", "adaptor", zero_stages=[3]),
        tiled("siglip", "adaptor", "language"),
        tiled("siglip", "adaptor", "language", variant="tiny", zero_stages=[3]),
        tiled("siglip", "adaptor", "language", variant="small", zero_stages=[2]),
    )


@pytest.mark.slow
@pytest.mark.timeout(HANG_SECONDS + 100)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_deepseek_vl2_trains_as_one_process(tmp_path, variant):
    """In its stage 1 and in the stages that train all."""
    check(
        tmp_path / "rows.json",
        tiled("siglip", "adaptor", variant=variant),
        tiled("siglip", "adaptor", "language", variant=variant),
    )


@pytest.mark.slow
@pytest.mark.timeout(HANG_SECONDS + 100)
@pytest.mark.parametrize("zero_stage", EVERY_STAGE)
@pytest.mark.parametrize("stage", [stage_1, stage_3])
def test_every_tower_and_adaptor_trains_as_one_process(tmp_path, stage, zero_stage):
    """One start of processes for all kinds."""
    cases = [stage(encoder, kind, zero_stages=[zero_stage]) for encoder, kind in TABLE]
    check(tmp_path / "rows.json", *cases)


@pytest.mark.slow
@pytest.mark.timeout(HANG_SECONDS + 100)
@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_other_recomputation_trains_the_same(tmp_path, recompute):
    """``full`` is in the tables above."""
    check(
        tmp_path / "rows.json",
        stage_3("siglip_sam", "hybrid_split", recompute=recompute),
        stage_3("sam_clip", "shared", recompute=recompute, zero_stages=[2, 3]),
    )
