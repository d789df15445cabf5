"""What a user does with a finished run: evaluate, report, ask, export for stock transformers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from vltrain.assemble.inference import load_run
from vltrain.batch import Role, StoredImage, Turn
from vltrain.evaluate.results import read_points
from vltrain.evaluate.subject import subject_of
from vltrain.models.pixels import pixel_view
from vltrain.models.published_directory import PublishedDirectory


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    Image.new("RGB", (50, 40), (250, 20, 20)).save(path)
    return path


def test_evaluate_then_report(stages, in_process, workspace: Path) -> None:
    ended = in_process(
        "runs/demo/stage3", "evaluate.max_samples=12", "evaluate.choices=3", script="eval"
    )
    assert ended.code == 0, ended.err
    assert "easy_vqa_what" in ended.out
    assert "text, loss" in ended.out
    point = read_points(stages.runs[3])[-1]
    assert {"text", "easy_vqa_what", "easy_vqa_yes_no", "digits_qa"} <= set(point.held_out)
    ended = in_process("runs/demo", script="report")
    assert ended.code == 0, ended.err
    page = (workspace / "runs/demo/report.html").read_text()
    assert "finetune" in page
    assert (workspace / "runs/demo/overview.png").stat().st_size > 10_000


def test_ask(stages, in_process, refused, workspace: Path, picture: Path, tmp_path: Path) -> None:
    question = "what color is the shape?"
    ended = in_process("runs/demo/stage3", str(picture), question, script="ask")
    assert ended.code == 0, ended.err
    (newest,) = (workspace / "runs/demo/stage3/checkpoints").glob("step-*6")
    shutil.copytree(newest, tmp_path / "best")  # away from its run
    copy = in_process(str(tmp_path / "best"), str(picture), question, script="ask")
    assert (copy.code, copy.out) == (0, ended.out), copy.err
    said = refused("runs/demo/stage3", str(picture), "the shape", "--as", "ref", script="ask")
    assert "the question cannot be asked: no_special_token" in said
    assert "<|ref|>, which the tokenizer does not have" in said


def test_weights_and_tokenizer_that_moved_are_named(
    stages, in_process, refused, workspace: Path, picture: Path, tmp_path: Path, monkeypatch
) -> None:
    run = str(workspace / "runs/demo/stage3")
    ask = (run, str(picture), "what color is the shape?", "--tokens", "3")
    monkeypatch.chdir(tmp_path)  # what the run wrote down holds anywhere
    answer = in_process(*ask, script="ask")
    assert answer.code == 0, answer.err
    moved = tmp_path / "moved"
    shutil.copytree(workspace / "runs/demo/warm_start/sam", moved)
    where = f"model.weights.sam={moved}"
    assert in_process(*ask, where, script="ask").out == answer.out
    other = workspace / "other"
    for script, words in (("ask", ask), ("export", (run, str(tmp_path / "new"))), ("eval", (run,))):
        said = refused(*words, f"model.weights.sam={other}/sam", script=script)
        assert f"The weights of sam at {other}/sam have the digest" in said
    said = refused(*ask, f"model.weights.language={other}/language", script="ask")
    assert "would replace weights that" in said
    said = refused(*ask, "model.tokenizer=nowhere", script="ask")
    assert "no tokenizer.json in nowhere" in said


def test_bad_questions_are_refused(stages, refused, picture: Path, tmp_path: Path) -> None:
    no_picture = tmp_path / "notes.png"
    no_picture.write_text("not a picture")
    said = refused("runs/demo/stage3", str(no_picture), "what?", script="ask")
    assert "notes.png is no picture" in said
    said = refused("runs/demo/nowhere", str(picture), "what?", script="ask")
    assert "neither a run directory" in said
    said = refused("runs/demo/nowhere", script="eval")
    assert "neither a run directory" in said
    said = refused("runs/demo/stage3", "evaluate.max_sample=3", script="eval")
    assert "max_sample" in said


def test_an_export_gives_the_same_logits_in_stock_transformers(
    stages, in_process, refused, workspace: Path, picture: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    target = tmp_path / "exported"
    ended = in_process("runs/demo/stage3", str(target), script="export")
    assert ended.code == 0, ended.err
    card = (target / "README.md").read_text()
    assert "| 1 align | adaptor |" in card
    assert "| 3 finetune | adaptor, language, siglip |" in card
    assert "| 3 | easy_vqa_what | conversation | multimodal |" in card
    assert "| MIT | easy-VQA by Victor Zhou" in card
    assert "| sam | sam | `" in card
    for taken in (target, target / "README.md"):
        said = refused("runs/demo/stage3", str(taken), script="export")
        assert f"{taken} is not empty or no folder; give a new directory" in said

    run = load_run(workspace / "runs/demo/stage3")
    image = StoredImage(member="red.png", data=picture.read_bytes(), width=50, height=40)
    turn = Turn(role=Role.user, content=(0, "\nwhat color is the shape?"))
    prompt = run.encoder.prompt_ids((turn,), (image,))
    ids = torch.from_numpy(prompt.ids).long()[None]
    squares = torch.from_numpy(subject_of(run.built, end_id=1).squares(prompt))
    views = {
        part: pixel_view(run.config.model, part=part, images=squares, dtype=torch.float32)
        for part in ("sam", "siglip")
    }
    stock = AutoModelForImageTextToText.from_pretrained(target)
    with torch.no_grad():
        theirs = stock(
            input_ids=ids, pixel_values=views["siglip"], high_res_pixel_values=views["sam"]
        ).logits
        places = (ids == run.config.model.image_token_id).flatten().nonzero()[:, 0]
        positions, segments = torch.arange(ids.shape[1])[None], torch.ones_like(ids)
        hidden = run.built.module.hidden(
            ids, positions, segments, places, run.built.frozen.encode(squares)
        )
        ours = run.built.module.language.lm_head(hidden)
    assert (ours - theirs).abs().max() < 1e-5

    processor = AutoProcessor.from_pretrained(target)
    content = [{"type": "image"}, {"type": "text", "text": "\nwhat color is the shape?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    batch = processor(text=text, images=[Image.open(picture)], return_tensors="pt")
    assert batch["input_ids"][0].tolist() == ids[0].tolist()


def test_an_export_in_the_original_layout_is_read_again(
    stages, in_process, workspace: Path, tmp_path: Path
) -> None:
    target = stages.runs[3] / "exported/deepseek_vl-step-6"  # where nothing else is asked for
    words = ("--format", "deepseek_vl", "--shard-size", "200KB", "evaluate.choices=3")
    checkpoint = sorted((stages.runs[3] / "checkpoints").iterdir())[-1]
    ended = in_process(str(checkpoint), *words, script="export")
    assert ended.code == 0, ended.err
    assert f"{target}: exported step 6 of" in ended.out
    assert len(list(target.glob("model-*.safetensors"))) > 3
    assert "siglip.head.probe" in (target / "README.md").read_text()  # made: none was stored
    run = load_run(workspace / "runs/demo/stage3")
    published = PublishedDirectory(target, config=run.config.model)
    for name, parameter in run.built.named_parameters():
        assert torch.equal(published.tensor(name), parameter), name
    for size in ("5", "0GB", "large"):
        ended = in_process(
            str(checkpoint), str(tmp_path / "x"), "--shard-size", size, script="export"
        )
        assert ended.code == 2
        assert "expected a size such as 500MB or 5GB" in ended.err
    ended = in_process(str(checkpoint), "--format", "gguf", script="export")
    assert ended.code == 2
    assert "invalid choice: 'gguf' (choose from" in ended.err
