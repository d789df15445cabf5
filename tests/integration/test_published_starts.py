"""Runs that start from whole published models, in both layouts, and runs with a tower of another
kind, through the launch scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forked import run_forked
from launching import DEMO, Stages, rows_of
from model_choices import CLIP
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

pytestmark = pytest.mark.slow

FEW = ("optim.steps=2", "optim.schedule.warmup_steps=0", "metrics.wandb.enabled=false")


def trained(workspace: Path, *words: str) -> None:
    ended = run_forked(*words, *DEMO, *FEW, processes=1, cwd=workspace)
    assert ended.code == 0, ended.err


def parts_of(run: Path) -> dict:
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    return json.loads((newest / "manifest.json").read_text())["parts"]


@pytest.mark.parametrize("form", ["transformers", "deepseek_vl"])
def test_a_stage_starts_from_an_export_as_from_the_run_itself(
    stages: Stages, workspace: Path, in_process, form: str
) -> None:
    exported = workspace / f"exported-{form}"
    ended = in_process(
        str(stages.runs[2]),
        str(exported),
        "--format",
        form,
        "--shard-size",
        "300KB",
        script="export",
    )
    assert ended.code == 0, ended.err
    demo = stages.runs[2].parent
    trained(workspace, "stage=3", f"init_from={exported}", f"run.name=from-{form}")
    trained(workspace, "stage=3", "init_from=runs/demo/stage2", f"run.name=beside-{form}")
    found, expected = (rows_of(demo / f"{name}-{form}") for name in ("from", "beside"))
    assert [row["loss"] for row in found] == [row["loss"] for row in expected]
    assert {part["path"] for part in parts_of(demo / f"from-{form}").values()} == {str(exported)}


def test_a_clip_tower_trains_answers_and_is_not_exported(
    stages: Stages, workspace: Path, in_process, refused, tmp_path: Path
) -> None:
    """Published weights, frozen in one stage and trained in the next, with stage 2 left out."""
    CLIPVisionModel(CLIPVisionConfig(**CLIP["settings"])).save_pretrained(tmp_path / "clip")
    normalised = {"image_mean": CLIP["mean"], "image_std": CLIP["std"]}
    (tmp_path / "clip/preprocessor_config.json").write_text(json.dumps(normalised))
    clip = ("model/encoder=vit", f"model.vit.path={tmp_path / 'clip'}", "model.vit.state=-2")
    demo = stages.runs[1].parent
    trained(workspace, "stage=1", *clip, "run.name=clip1")
    trained(
        workspace,
        *("stage=3", *clip, "run.name=clip3", "init_from=runs/demo/clip1"),
        *("stage.without=[2]", "stage.trainable=[adaptor,language,vit]", "~optim.parts.siglip"),
    )
    before, after = parts_of(demo / "clip1"), parts_of(demo / "clip3")
    assert set(before) == {"vit", "adaptor", "language"}
    assert [part for part in before if before[part]["trained"]] == ["adaptor"]
    assert all(part["trained"] for part in after.values())
    assert after["vit"]["digest"] == before["vit"]["digest"]
    asked = in_process("runs/demo/clip3", str(picture(tmp_path)), "what?", script="ask")
    assert asked.code == 0, asked.err
    assert "cannot be exported" in refused("runs/demo/clip3", script="export")


def picture(folder: Path) -> Path:
    Image.new("RGB", (50, 40), (250, 20, 20)).save(folder / "red.png")
    return folder / "red.png"
