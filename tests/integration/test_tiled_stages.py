"""DeepSeek-VL2's three stages, tiny, with two processes through the real launcher: tiles go through
the whole data path, what a stage hands over are weights and the routers' corrections, and its runs
are evaluated and asked. (Stages 1 and 2 start from the seed: there are no weights of such a
language model here.)"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import DEMO, Finished, deepspeed, demo_texts, launch, prepare_here, rows_of
from PIL import Image

from vltrain.assemble.inference import load_run
from vltrain.batch import Template
from vltrain.evaluate.results import read_points
from vltrain.processing.train_tokenizer import train_bpe

TRAINED = {
    1: {"siglip", "adaptor"},
    2: {"siglip", "adaptor", "language"},
    3: {"siglip", "adaptor", "language"},
}
LAYERS, EXPERTS = 2, 8


def words(number: int) -> tuple[str, ...]:
    """The demo's data through the tiny tiled model, with the family's own stage values."""
    from_seed = number < 3
    return (
        f"stage={number}",
        f"+stage/deepseek_vl2='{number}'",
        *DEMO,
        "model=tiny_vl2",
        "model.tokenizer=runs/demo/vl2_tokenizer",
        *(f"model.weights.{part}=null" for part in ("sam", "siglip", "language")),
        f"model.weights.allow_random={'true' if from_seed else 'false'}",
        f"init_from={'null' if from_seed else 'runs/demo/tiled2'}",
        f"run.name=tiled{number}",
        "data.mixture.language_share=" + ("0" if number == 1 else "0.3"),
        "metrics.wandb.enabled=false",
        "metrics.log_every=2",
    )


def manifest_of(run: Path) -> dict:
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    return json.loads((newest / "manifest.json").read_text())


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
        ended = launch(deepspeed("--num_gpus", "2"), *words(number), cwd=workspace)
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
    largest = []
    for number in (1, 2, 3):
        kept = manifest_of(runs[number])["counters"]["routers"]
        assert [len(layer) for layer in kept] == [EXPERTS] * LAYERS
        largest.append(max(abs(value) for layer in kept for value in layer))
    # A step of 0.001 after each of six updates; the third stage goes on from the second.
    assert 0 < largest[0] <= 0.0061
    assert 0 < largest[1] <= 0.0061
    assert largest[1] < largest[2] <= 0.0121


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
