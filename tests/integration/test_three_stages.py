"""Three stages with two processes through the real launcher: each hands over to the next, and only
what should move has moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from forked import run_forked
from launching import DEMO, Stages, rows_of
from safetensors.torch import load_file

from vltrain.checkpoint.reader import read_part_state
from vltrain.checkpoint.store import open_checkpoint
from vltrain.models.weights import part_digest, tensor_digests

TRAINED = {
    1: {"adaptor"},
    2: {"adaptor", "language"},
    3: {"adaptor", "language", "siglip"},
}
PARTS = {"sam", "siglip", "adaptor", "language"}


def part_digests(run: Path, part: str) -> dict[str, str]:
    """Digest of each tensor of a part that trained, at the end of a run."""
    checkpoint = open_checkpoint(sorted((run / "checkpoints").glob("step-*"))[-1])
    return tensor_digests(read_part_state(checkpoint.directory, checkpoint.manifest, part=part))


def manifest_of(run: Path) -> dict:
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    return json.loads((newest / "manifest.json").read_text())


@pytest.mark.parametrize("number", [1, 2, 3])
def test_what_trains_and_what_stays(stages: Stages, number: int) -> None:
    summary = json.loads((stages.runs[number] / "summary.json").read_text())
    assert summary["steps"] == 6
    for part in summary["parts"]:
        if part["part"] in TRAINED[number]:
            assert part["trainable"] == part["parameters"] > 0
            assert part["frozen_tensors"] == 0
            assert part["trained_tensors"]
        else:
            assert part["trainable"] == 0
            assert part["trained_tensors"] == []
            assert part["frozen_digest_before"] == part["frozen_digest_after"] is not None
    assert {part["part"] for part in summary["parts"]} == PARTS
    assert stages.finished[number].said("bit-identical to the start") == 1


def test_frozen_parts_are_the_same_weights_through_all_stages(stages: Stages) -> None:
    """By the digests of the published files, which each manifest hands to the next."""
    parts = {number: manifest_of(run)["parts"] for number, run in stages.runs.items()}
    assert len({parts[n]["sam"]["digest"] for n in (1, 2, 3)}) == 1
    assert len({parts[n]["siglip"]["digest"] for n in (1, 2, 3)}) == 1  # 3: what it began with
    assert parts[1]["language"]["digest"] == parts[2]["language"]["digest"]
    assert [p for p in PARTS if parts[1][p]["trained"]] == ["adaptor"]
    assert parts[2]["adaptor"]["path"].endswith("stage1/checkpoints/step-00000006")


def test_every_trained_tensor_moved(stages: Stages) -> None:
    ends = {
        number: {part: part_digests(stages.runs[number], part) for part in TRAINED[number]}
        for number in (1, 2, 3)
    }
    for number, part in ((2, "adaptor"), (3, "adaptor"), (3, "language")):
        before, after = ends[number - 1][part], ends[number][part]
        assert before.keys() == after.keys()
        assert not [name for name in before if before[name] == after[name]]
    for number in (1, 2, 3):
        began = manifest_of(stages.runs[number])["parts"]
        for part in TRAINED[number]:
            assert part_digest(ends[number][part]) != began[part]["digest"]
            if number < 3:
                given = manifest_of(stages.runs[number + 1])["parts"][part]["digest"]
                assert part_digest(ends[number][part]) == given


@pytest.mark.parametrize("number", [1, 2, 3])
def test_rows_of_a_whole_run(stages: Stages, number: int) -> None:
    rows = rows_of(stages.runs[number])
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert len({row["chain"] for row in rows}) == 6
    for row in rows:
        assert 0 < row["loss"] < 8
        assert row["grad_norm"] > 0
        assert not row["skipped"]
        assert row["holes"] == 0
        assert sum(row["tokens"].values()) == sum(row["planned_tokens"].values()) > 0
        assert set(row["lr"]) == TRAINED[number]
        assert 1.0 <= row["rank_imbalance"] < 2.0  # of two ranks
    assert rows_of(stages.runs[1])[0]["lr"] == {"adaptor": pytest.approx(1e-3)}


def test_stage_2_groups_and_ramps(stages: Stages) -> None:
    rows = rows_of(stages.runs[2])
    assert rows[0]["modality"] == "language"
    assert all(row["modality"] in ("language", "multimodal") for row in rows)
    targets = [row["language_share_target"] for row in rows]
    assert targets[0] == 1.0
    assert targets[-1] == pytest.approx(0.7)


def test_the_run_directory(stages: Stages) -> None:
    run = stages.runs[2]
    assert len(list((run / "wandb").glob("offline-run-*"))) == 1
    assert (run / "wandb_id").read_text().strip() == manifest_of(run)["run"]["wandb_id"]
    assert "number: 2" in (run / "config.yaml").read_text()
    assert not (run / "outputs").exists()
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        "step-00000004",
        "step-00000006",
    ]


def test_each_thing_is_said_once(stages: Stages) -> None:
    """By the first process alone, and the learned tokens of every source are shown."""
    said = stages.finished[3]
    assert said.said("checkpoint of step 6 in") == 1
    assert said.said("learned in [ ]") == 5
    assert said.said("Assistant:[ ") >= 5
    assert said.said("User:[") == said.said("[User") == 0
    assert said.said("trains: ") == 1
    assert "Traceback" not in said.out + said.err


def test_what_a_stage_kept_frozen_may_train_in_the_next(stages: Stages, workspace: Path) -> None:
    embedding = "language.model.embed_tokens.weight"
    few = ("optim.steps=2", "optim.schedule.warmup_steps=0", "metrics.wandb.enabled=false")
    froze = ("run.name=froze", "stage.freeze=[language.model.embed_tokens.*]")
    shutil.copytree(workspace / "runs/demo/warm_start/sam", workspace / "elsewhere/sam")
    moved = "model.weights.sam=elsewhere/sam"  # equal bytes: taken, and recorded
    ended = run_forked("stage=2", *DEMO, *few, *froze, moved, processes=1, cwd=workspace)
    assert ended.code == 0, ended.err
    thawed = ("run.name=thawed", "init_from=runs/demo/froze")
    ended = run_forked("stage=3", *DEMO, *few, *thawed, processes=1, cwd=workspace)
    assert ended.code == 0, ended.err
    demo = stages.runs[1].parent
    for name in ("froze", "thawed"):
        sam = manifest_of(demo / name)["parts"]["sam"]
        assert sam["path"] == str(workspace / "elsewhere/sam")
        assert sam["digest"] == manifest_of(stages.runs[1])["parts"]["sam"]["digest"]
    kept, trained = (part_digests(demo / name, "language") for name in ("froze", "thawed"))
    published = load_file(demo / "warm_start/language/model.safetensors")
    began = tensor_digests([(embedding, published[embedding.removeprefix("language.")])])
    assert kept[embedding] == began[embedding]
    assert trained[embedding] != began[embedding]


@pytest.mark.slow
def test_bf16_trains_nearly_the_same_beside_frozen_towers_in_bf16(
    stages: Stages, workspace: Path
) -> None:
    words = ("stage=2", *DEMO, "engine.dtype=bf16", "run.name=bf16", "metrics.wandb.enabled=false")
    ended = run_forked(*words, processes=1, cwd=workspace)
    assert ended.code == 0, ended.err
    assert ended.said("bit-identical to the start") == 1
    rows, wanted = rows_of(stages.runs[2].with_name("bf16")), rows_of(stages.runs[2])
    assert [row["loss"] for row in rows] == pytest.approx([r["loss"] for r in wanted], rel=0.02)
    assert [row["loss"] for row in rows] != [row["loss"] for row in wanted]
    found, expected = (
        manifest_of(stages.runs[2].with_name(n))["parts"] for n in ("bf16", "stage2")
    )
    for part in ("sam", "siglip"):
        assert found[part] == expected[part]


@pytest.mark.slow
def test_stages_left_out(stages: Stages, workspace: Path, in_process, tmp_path: Path) -> None:
    """DeepSeek-VL Table 9: stages 1 and 3; stages 2 and 3, of which 2 makes the adaptor."""
    few = ("optim.steps=2", "optim.schedule.warmup_steps=0", "metrics.wandb.enabled=false")
    demo = stages.runs[1].parent
    start = [f"model.weights.{part}={demo}/warm_start/{part}" for part in PARTS - {"adaptor"}]
    for words in (
        ("stage=3", "run.name=without-2", "stage.without=[2]", "init_from=runs/demo/stage1"),
        ("stage=2", "run.name=without-1", "stage.without=[1]", "init_from=null", *start),
        ("stage=3", "run.name=after-2", "init_from=runs/demo/without-1"),
    ):
        ended = run_forked(*words, *DEMO, *few, processes=1, cwd=workspace)
        assert ended.code == 0, ended.err
    runs = {name: manifest_of(demo / name) for name in ("without-2", "without-1", "after-2")}
    before = {
        name: [record["stage"]["number"] for record in manifest["lineage"]]
        for name, manifest in runs.items()
    }
    assert before == {"without-2": [1], "without-1": [], "after-2": [2]}
    parts = runs["without-2"]["parts"]
    assert parts["adaptor"]["digest"] == part_digest(part_digests(stages.runs[1], "adaptor"))
    for part in PARTS - {"adaptor"}:  # as stage 1 had them
        assert parts[part]["digest"] == manifest_of(stages.runs[1])["parts"][part]["digest"]
    assert runs["without-1"]["parts"]["adaptor"]["path"] is None
    made = part_digests(demo / "without-1", "adaptor")
    assert runs["after-2"]["parts"]["adaptor"]["digest"] == part_digest(made)
    ended = in_process(str(demo / "without-2"), str(tmp_path / "exported"), script="export")
    assert ended.code == 0, ended.err
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "| 1 align |" in card
    assert "| 2 pretrain |" not in card
    assert "| 3 finetune |" in card


def test_parameters_and_states_in_host_memory_train_the_same(
    stages: Stages, workspace: Path
) -> None:
    offload = ("engine=zero3_offload", "engine.dtype=fp32", "run.name=offload")
    words = ("stage=1", *DEMO, *offload, "metrics.wandb.enabled=false")
    ended = run_forked(*words, processes=1, cwd=workspace)
    assert ended.code == 0, ended.err
    rows, wanted = rows_of(stages.runs[1].with_name("offload")), rows_of(stages.runs[1])
    assert [row["loss"] for row in rows] == pytest.approx([r["loss"] for r in wanted], rel=1e-5)
