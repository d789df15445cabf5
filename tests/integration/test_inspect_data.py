"""launch/inspect_data.py beside real runs: the steps it shows are the steps that were trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import DEMO, Finished, Stages, prepare_here, rows_of
from PIL import Image

InProcess = Callable[..., Finished]
Refused = Callable[..., str]
WORDS = ("stage=2", *DEMO)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_trained_step_is_proved(in_process: InProcess, stages: Stages, number: int) -> None:
    """Two ranks trained them; one process plans and reads them again."""
    run = stages.runs[number]
    ended = in_process("step", "1-6", f"runs/demo/stage{number}", script="inspect_data")
    assert ended.code == 0, ended.err
    for row in rows_of(run):
        said = f"step {row['step']}: digest {row['digest']} is the one in steps.jsonl, and links"
        assert said in ended.out
    assert "planned 6 steps forward from the start" in ended.out
    assert str(Path("runs/demo") / f"stage{number}" / "inspection" / "steps-1-6.html") in ended.out


def test_a_step_alone_from_its_checkpoint_and_from_nothing(
    in_process: InProcess, stages: Stages, workspace: Path, tmp_path: Path
) -> None:
    """With a run, its cursor of step 4 leads to step 5; the words alone plan from the start. Both
    give what training reached by running."""
    row = rows_of(stages.runs[2])[4]
    near = in_process(
        "step", "5", "runs/demo/stage2", "--out", str(tmp_path), script="inspect_data"
    )
    assert near.code == 0, near.err
    assert "planned 1 step forward from the checkpoint of step 4" in near.out
    assert f"digest {row['digest']} is the one in steps.jsonl" in near.out
    far = in_process(
        "step", "5", *WORDS, "run.name=never_run", "data.loader.workers=1", script="inspect_data"
    )
    assert far.code == 0, far.err
    assert "planned 5 steps forward from the start" in far.out
    inspection = workspace / "runs/demo/never_run/inspection"
    assert f"digest {row['digest']}" in (inspection / "step-5.html").read_text()
    tables = [ended.out.split("\n\nplanned")[0] for ended in (near, far)]
    assert tables[0] == tables[1]
    assert tables[0].startswith(f"step 5: {row['modality']}, 4 packs")
    assert (tmp_path / "step-5.html").is_file()
    if row["images"]:
        assert Image.open(inspection / "step-5.png").size[0] > 128


def test_a_run_whose_record_says_otherwise(
    in_process: InProcess, stages: Stages, workspace: Path
) -> None:
    shutil.copytree(stages.runs[2], workspace / "edited")
    rows = rows_of(workspace / "edited")
    rows[4]["digest"] = "0" * 32
    lines = [json.dumps(row) + "\n" for row in rows]
    (workspace / "edited/steps.jsonl").write_text("".join(lines))
    ended = in_process("step", "5", "edited", script="inspect_data")
    assert ended.code == 3
    assert f"but steps.jsonl has {'0' * 32}" in ended.out


def test_a_step_that_is_not_yet_trained(
    in_process: InProcess, stages: Stages, workspace: Path
) -> None:
    ended = in_process("step", "9", "runs/demo/stage2", "optim.steps=20", script="inspect_data")
    assert ended.code == 0, ended.err
    assert "has not recorded step 9 (its steps.jsonl ends with step 6)" in ended.out


def test_diff_of_two_runs(in_process: InProcess, stages: Stages) -> None:
    ended = in_process("diff", "runs/demo/stage2", "runs/demo/stage3", script="inspect_data")
    assert ended.code == 0, ended.err
    for line in (
        "  stage.number: 2 there, 3 here",
        "  data.packing.enabled: True there, False here",
        "recorded batches: digests differ from step 1 on (6 recorded by both)",
        "planned batches differ from step 1 on: ",
    ):
        assert line in ended.out


def test_diff_of_a_run_and_words(in_process: InProcess, stages: Stages) -> None:
    run = "runs/demo/stage2"
    same = in_process("diff", run, *WORDS, "optim.lr=2e-3", "--steps", "6", script="inspect_data")
    assert same.code == 0, same.err
    assert "config: 1 differ\n  optim.lr: 0.001 there, 0.002 here\n" in same.out
    assert "data recipe: the same" in same.out
    assert "planned batches: the same packs in all of the first 6 steps" in same.out
    later = in_process("diff", run, *WORDS, "data.mixture.ramp.steps=5", script="inspect_data")
    assert "  mixture.ramp: ['linear', 2, 0, 1.0] there, ['linear', 5, 0, 1.0] here" in later.out
    assert "planned batches differ from step " in later.out


def test_lint(in_process: InProcess, stages: Stages, workspace: Path) -> None:
    ended = in_process("lint", *WORDS, script="inspect_data")
    assert ended.code == 0, ended.out + ended.err
    assert "0 errors, " in ended.out
    ended = in_process("lint", "runs/demo/stage2", script="inspect_data")
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[0].split()[:3] == ["source", "modality", "category"]


def test_lint_finds_a_leak_and_a_leaf_under_two_names(
    in_process: InProcess, workspace: Path
) -> None:
    emoji = "data/demo/emoji_caption/train"
    words = (*WORDS, f"data.held_out.emoji.path={emoji}", f"data.sources.digits.path={emoji}")
    prepare_here(workspace, *words)
    ended = in_process("lint", *words, script="inspect_data")
    assert ended.code == 3, ended.err
    for name in ("emoji", "digits"):
        where = f"data.sources.{name} and data.held_out.emoji"
        assert f"error (overlap_content): {where}: 24 of 24 training samples" in ended.out
    assert "error (duplicate_leaf): data.sources.emoji and data.sources.digits" in ended.out
    assert "\n3 errors, " in ended.out


BAD_WORDS = [
    (("look", "stage=2"), "argument command: invalid choice: 'look'"),
    (("step",), "step: nothing before the key=value words"),
    (("step", "first", *WORDS), "'first' is no step: give a number such as 7"),
    (("step", "0", *WORDS), "there is no step 0: the first step is 1"),
    (("step", "9-7", *WORDS), "steps 9-7: the second number is the smaller one"),
    (("step", "1-51", *WORDS), "at most 50 steps at a time"),
    (("step", "7", *WORDS), "step 7 lies behind the stage's end: optim.steps=6"),
    (("step", "1", "runs/demo/nowhere"), "runs/demo/nowhere is no run directory"),
    (("step", "1", "--packs", "0", *WORDS), "--packs 0: must be at least 1"),
    (("step", "1", "--out", "launch/train.py", *WORDS), "launch/train.py cannot be made"),
    (("step", "1", "--pack-it", *WORDS), "unrecognized arguments: --pack-it"),
    (("diff", "runs/demo/stage2"), "diff takes two runs, or one run and the words of a config"),
    (("diff", *WORDS), "diff: nothing before the key=value words"),
    (("diff", "data", *WORDS), "data is no run directory"),
    (("lint", "data", *WORDS), "data is no run directory"),
    (("lint", "stgae=2", *DEMO), "did you mean stage=...?"),
    (("lint", "stage=2"), "for 34 sources (art, arxiv_markdown, "),
]


@pytest.mark.parametrize(
    ("words", "message"), BAD_WORDS, ids=[" ".join(w)[:40] for w, _ in BAD_WORDS]
)
def test_bad_words(refused: Refused, stages: Stages, words: tuple[str, ...], message: str) -> None:
    assert message in refused(*words, script="inspect_data")


@pytest.mark.parametrize("command", [("step", "1"), ("lint",)])
def test_data_that_is_not_prepared(
    refused: Refused, stages: Stages, workspace: Path, command: tuple[str, ...]
) -> None:
    shutil.copytree(
        workspace / "data/demo/emoji_caption/train",
        workspace / "unprepared",
        ignore=shutil.ignore_patterns(".vltrain"),
        dirs_exist_ok=True,
    )
    said = refused(*command, *WORDS, "data.sources.emoji.path=unprepared", script="inspect_data")
    assert "source 'emoji'" in said
    assert "python launch/prepare.py" in said


def test_a_run_with_other_words_is_another_run(refused: Refused, stages: Stages) -> None:
    said = refused(
        "step", "5", "runs/demo/stage2", "data.mixture.language_share=0.5", script="inspect_data"
    )
    assert "runs/demo/stage2 was trained on data recipe" in said
    assert "inspect_data.py diff" in said
