"""DeepSeek-VL2's three stages, tiny, in two processes: stage 1 starts from published parts, tiles
go through the whole data path, what a stage hands over are weights and the routers' corrections;
its runs are evaluated, also on boxes, and asked, and exported in the released layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked import run_forked
from launching import DEMO, Finished, demo_texts, launch, prepare_here, python, rows_of
from PIL import Image
from safetensors.torch import load_file

from data_recipes.demo import BOXES, write_demo
from vltrain.assemble.exporting import RunWeights
from vltrain.assemble.inference import find_run, load_run
from vltrain.batch import Special, Template
from vltrain.evaluate.results import BoxFigures, read_points
from vltrain.models.build import build_model
from vltrain.models.trainable import parts_of
from vltrain.models.weights import load_weights
from vltrain.processing.train_tokenizer import train_bpe

TRAINED = {
    1: {"siglip", "adaptor"},
    2: {"siglip", "adaptor", "language"},
    3: {"siglip", "adaptor", "language"},
}
LAYERS, EXPERTS = 2, 8


def words(number: int) -> tuple[str, ...]:
    """The demo's data through the tiny tiled model, with the family's own stage values."""
    start = "null" if number == 1 else f"runs/demo/tiled{number - 1}"
    published = "runs/demo/tiled_parts/{}" if number == 1 else "null"
    return (
        f"stage={number}",
        f"+stage/deepseek_vl2='{number}'",
        *DEMO,
        "model=tiny_vl2",
        "model.tokenizer=runs/demo/vl2_tokenizer",
        "model.weights.sam=null",
        *(f"model.weights.{part}={published.format(part)}" for part in ("siglip", "language")),
        f"init_from={start}",
        f"run.name=tiled{number}",
        "data.mixture.language_share=" + ("0" if number == 1 else "0.3"),
        "metrics.wandb.enabled=false",
        "metrics.log_every=2",
    )


def manifest_of(run: Path) -> dict:
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    return json.loads((newest / "manifest.json").read_text())


def routers_of(checkpoint: Path) -> list[list[float]]:
    return json.loads((checkpoint / "manifest.json").read_text())["counters"]["routers"]


@pytest.fixture(scope="module")
def runs(workspace: Path) -> dict[int, Path]:
    train_bpe(
        demo_texts(workspace),
        vocab_size=512,
        directory=workspace / "runs/demo/vl2_tokenizer",
        image_token="<image>",
        template=Template.deepseek_vl2,
    )
    for number in (1, 2, 3):
        prepare_here(workspace, *words(number))
        ended = run_forked(*words(number), processes=2, cwd=workspace)
        assert ended.code == 0, ended.err
    return {number: workspace / f"runs/demo/tiled{number}" for number in (1, 2, 3)}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_what_trains(runs: dict[int, Path], number: int) -> None:
    summary = json.loads((runs[number] / "summary.json").read_text())
    trained = {part["part"] for part in summary["parts"] if part["trainable"]}
    assert trained == TRAINED[number]
    assert {part["part"] for part in summary["parts"]} == TRAINED[3]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_rows_show_how_tokens_were_spread(runs: dict[int, Path], number: int) -> None:
    rows = rows_of(runs[number])
    assert len(rows) == 6
    for row in rows:
        assert 0 < row["loss"] < 8
        assert not row["skipped"]
        routers = row["routers"]
        assert [len(routers[name]) for name in ("max_over_mean", "entropy")] == [LAYERS, LAYERS]
        assert all(1 <= ratio <= EXPERTS for ratio in routers["max_over_mean"])
        assert all(0 < share <= 1 for share in routers["entropy"])
        assert ("loads" in routers) == (row["step"] % 2 == 0)
        if "loads" in routers:  # two experts for every real token, on all ranks together
            used = [sum(layer) for layer in routers["loads"]]
            assert used == [2 * sum(row["tokens"].values())] * LAYERS


def test_corrections_are_kept_and_handed_on(runs: dict[int, Path]) -> None:
    start = torch.tensor([0.25] + [0.0] * (EXPERTS - 1))  # as published
    moved = []
    for number in (1, 2, 3):
        kept = torch.tensor(manifest_of(runs[number])["counters"]["routers"])
        assert kept.shape == (LAYERS, EXPERTS)
        moved.append(float((kept - start).abs().max()))
    # A step of 0.001 after each of six updates, but not where the language model is frozen; each
    # stage goes on from the one before.
    assert moved[0] == 0
    assert 0 < moved[1] <= 0.0061
    assert moved[1] < moved[2] <= 0.0121


def test_a_run_resumed_elsewhere_goes_on_with_the_same_corrections(
    runs: dict[int, Path], workspace: Path
) -> None:
    """From its fourth step, in one process instead of two and at another ZeRO stage."""
    other = workspace / "runs/demo/tiled2-elsewhere"
    shutil.copytree(runs[2], other)
    shutil.rmtree(other / "checkpoints/step-00000006")
    kept = manifest_of(other)["counters"]["routers"]
    ended = run_forked(
        *(*words(2), f"run.name={other.name}", "engine.zero_stage=3", "data.batch.micro=1"),
        processes=1,
        cwd=workspace,
    )
    assert ended.code == 0, ended.err
    found, expected = manifest_of(other), manifest_of(runs[2])
    assert (found["step"], found["world"]["size"], expected["world"]["size"]) == (6, 1, 2)
    assert found["counters"]["routers"] == expected["counters"]["routers"] != kept


def test_a_rollback_takes_the_corrections_back_too(runs: dict[int, Path], workspace: Path) -> None:
    """The fifth update is so large that the sixth step is not finite: back to what the fourth
    left."""
    run = workspace / "runs/demo/tiled2-back"
    ended = run_forked(
        *(*words(2), f"run.name={run.name}"),
        *("optim.steps=8", "optim.clip_norm=0", "checkpoint.every_steps=1"),
        *("checkpoint.keep_last=8", "stability.skip_budget=0"),
        "optim.schedule.kind=step",
        "optim.schedule.milestones=[0.5,0.625]",
        "optim.schedule.factors=[1e33,1]",
        processes=1,
        cwd=workspace,
    )
    assert ended.code == 0, ended.err
    assert "the weights of step 4, after 4 updates, go on with the data after step 6" in ended.err
    kept = {step: routers_of(run / f"checkpoints/step-0000000{step}") for step in range(4, 9)}
    assert kept[5] != kept[4]
    assert kept[6] == kept[4]
    assert kept[8] != kept[6]  # they go on from there
    assert float((torch.tensor(kept[8]) - torch.tensor(kept[4])).abs().max()) <= 0.0021


def test_images_cost_their_tiles(runs: dict[int, Path]) -> None:
    assert manifest_of(runs[1])["geometry"]["kind"] == "tiled"
    assert all(row["images"] > 0 for row in rows_of(runs[1]))


def test_a_run_is_evaluated_on_tiles_and_blind(
    runs: dict[int, Path], in_process: Callable[..., Finished]
) -> None:
    ended = in_process(
        "runs/demo/tiled3", "evaluate.max_samples=6", "evaluate.choices=3", script="eval"
    )
    assert ended.code == 0, ended.err
    point = read_points(runs[3])[-1]
    assert {"text", "emoji", "easy_vqa_what", "digits_qa"} <= set(point.held_out)
    # Emoji of 72 pixels are four tiles and a whole at 28: blank ones are other tokens to it.
    loss = point.held_out["emoji"]
    assert loss.blank_loss not in (None, loss.loss)
    assert point.questions["easy_vqa_what"]["what"].asked == 6


@pytest.fixture(scope="module")
def pointing(workspace: Path) -> str:
    """A word that holds out four questions for boxes, in pictures of 64 x 64 pixels:
    [1, 42, 14, 54], [0, 24, 17, 52], [39, 51, 51, 62] and [19, 5, 45, 31]."""
    list(write_demo(workspace / "data/demo", among=BOXES, limit=4))
    path = "data/demo/easy_vqa_boxes/held_out"
    return (
        f"data.held_out.shapes={{path: {path}, kind: conversation, modality: multimodal, "
        "learn: answers}"
    )


def test_boxes_of_a_run_are_scored(
    runs: dict[int, Path],
    pointing: str,
    in_process: Callable[..., Finished],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of launch/eval.py but what the model says: the box of the last picture for every one, and
    nothing for a blank one."""
    tokenizer = find_run(runs[3]).encoder.tokenizer
    box = tokenizer.encode("[[297, 78, 702, 484]]")  # 19, 5, 45 and 31 of 64
    special = tokenizer.special_ids
    answer = [special[Special.det], *box, special[Special.det_end]]

    def says(module, *, prompts, images, max_new_tokens, **model) -> list[list[int]]:
        blank = bool((images == 127).all())
        return [[] if blank else answer[:max_new_tokens] for _ in prompts]

    monkeypatch.setattr("vltrain.evaluate.subject.generate", says)
    words = ("evaluate.max_samples=4", "evaluate.choices=2", "evaluate.max_new_tokens=40")
    ended = in_process("runs/demo/tiled3", pointing, *words, script="eval")
    assert ended.code == 0, ended.err
    found = read_points(runs[3])[-1].boxes["shapes"]["find"]
    about_1 = pytest.approx(1 / 4, abs=0.005)
    assert found.seen == BoxFigures(
        one_box=4, right=1, several_boxes=0, f1=None, iou=about_1, unreadable=0
    )
    assert found.blank == BoxFigures(
        one_box=4, right=0, several_boxes=0, f1=None, iou=0.0, unreadable=4
    )
    row = next(line for line in ended.out.splitlines() if "shapes: find, box" in line)
    assert row.split()[2:] == [
        "box,",
        "%",
        "right",
        "at",
        "IoU",
        "0.5",
        "25.0",
        "(0.0)",
        "4",
        "asked",
    ]


@pytest.mark.slow
def test_the_demo_that_points(runs: dict[int, Path], pointing: str, workspace: Path) -> None:
    """Its own data and config with the tiny model, every command as a user types it. What a model
    says that has hardly learned is no box."""
    words = (
        *("stage=3", "+experiment=demo_vl2_boxes", "model=tiny_vl2"),
        *("run.root=runs/demo", "init_from=runs/demo/tiled2"),
        "model.tokenizer=runs/demo/vl2_tokenizer",
        *("optim.steps=4", "optim.schedule.warmup_steps=1", "data.packing.sequence_length=512"),
        *("metrics.wandb.enabled=false", "evaluate.max_samples=4", "evaluate.choices=2"),
    )
    for script in ("prepare", "train"):
        ended = launch(python(), *words, cwd=workspace, script=f"launch/{script}.py")
        assert ended.code == 0, ended.err
    run = "runs/demo/stage3_boxes"
    ended = launch(python(), run, cwd=workspace, script="launch/eval.py")
    assert ended.code == 0, ended.err
    found = read_points(workspace / run)[-1].boxes["easy_vqa_boxes"]["find"]
    assert found.blank is not None
    assert (found.seen.unreadable, found.blank.unreadable) == (4, 4)
    assert "easy_vqa_boxes: find, answers without a box" in ended.out


def test_a_loaded_run_routes_as_it_was_trained(
    runs: dict[int, Path], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    built = load_run(runs[3]).built
    corrections = dict(built.named_tensors())[
        "language.model.layers.1.mlp.gate.e_score_correction_bias"
    ]
    kept = manifest_of(runs[3])["counters"]["routers"]
    assert corrections.tolist() == pytest.approx(kept[0])
    assert any(kept[0])


def test_a_run_is_asked(
    runs: dict[int, Path], in_process: Callable[..., Finished], tmp_path: Path
) -> None:
    Image.new("RGB", (60, 30), (250, 20, 20)).save(tmp_path / "red.png")
    ask = ("runs/demo/tiled3", str(tmp_path / "red.png"))
    answers = [
        in_process(*ask, "what color is it?", script="ask"),
        in_process(*ask, "the shape", "--as", "ref", script="ask"),
    ]
    assert [answer.code for answer in answers] == [0, 0], [answer.err for answer in answers]


def test_the_other_layouts_have_no_place_for_it(
    runs: dict[int, Path], refused: Callable[..., str]
) -> None:
    said = refused("runs/demo/tiled1", "exported", script="export")
    assert "transformers has no class for it" in said
    assert "Export it with --format deepseek_vl2" in said


@pytest.mark.parametrize("number", [1, 3])
def test_an_export_in_the_released_layout_is_read_again(
    runs: dict[int, Path],
    in_process: Callable[..., Finished],
    tmp_path: Path,
    number: int,
) -> None:
    """Of stage 1, whose language model is as published, and of the last."""
    target = tmp_path / "exported"
    words = ("--format", "deepseek_vl2", "--shard-size", "100KB")
    ended = in_process(str(runs[number]), str(target), *words, script="export")
    assert ended.code == 0, ended.err
    files = list(target.glob("model-*.safetensors"))
    assert len(files) > 3
    names = {name for file in files for name in load_file(file)}
    assert "language.model.layers.2.mlp.experts.7.down_proj.weight" in names
    assert "view_seperator" in names
    assert "model_type: deepseek_vl_v2" in (target / "README.md").read_text()
    run = find_run(runs[number])
    model = run.config.model
    built = build_model(
        model,
        trainable=(),
        freeze=(),
        dtype=torch.float32,
        frozen_dtype=torch.float32,
        device="cpu",
        seed=1,
    )
    load_weights(built, directories=dict.fromkeys(parts_of(model), target))
    weights = RunWeights(run)
    state = dict(built.named_tensors())
    for name, tensor in state.items():
        assert torch.equal(tensor, weights.tensor(name)), name
    for layer, kept in enumerate(run.checkpoint.manifest.counters["routers"], start=1):
        correction = state[f"language.model.layers.{layer}.mlp.gate.e_score_correction_bias"]
        assert correction.tolist() == kept
