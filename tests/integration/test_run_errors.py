"""What can be wrong with a run: each is one clear message and exit code 2, before anything
trains."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import run_forked
from launching import DEMO, Finished, Stages, launch, prepare_here, python, rows_of

Refused = Callable[..., str]
InProcess = Callable[..., Finished]


def test_stage_4_lists_the_stages(in_process: InProcess) -> None:
    ended = in_process("stage=4", *DEMO)
    assert ended.code == 1  # Hydra's
    assert "Could not find 'stage/4'" in ended.err
    assert "Available options in 'stage':\n\t1\n\t2\n\t3\n" in ended.err
    assert "Traceback" not in ended.err


def test_a_misspelt_stage(refused: Refused) -> None:
    said = refused("stgae=2", *DEMO)
    assert "stgae=... is no key of this config; did you mean stage=...?" in said


def test_no_stage_at_all(in_process: InProcess) -> None:
    ended = in_process(*DEMO)
    assert ended.code == 1
    assert "You must specify 'stage', e.g, stage=<OPTION>" in ended.err
    assert "Traceback" not in ended.err


def test_a_misspelt_key(in_process: InProcess) -> None:
    ended = in_process("stage=1", *DEMO, "optim.lrr=1")
    assert ended.code == 1
    assert "Could not override 'optim.lrr'" in ended.err
    assert "Traceback" not in ended.err


def test_a_value_of_the_wrong_type(in_process: InProcess) -> None:
    ended = in_process("stage=1", *DEMO, "optim.steps=many")
    assert ended.code == 1
    assert "Value 'many' of type 'str' could not be converted to Integer" in ended.err
    assert "Traceback" not in ended.err


def test_no_data(refused: Refused) -> None:
    said = refused("stage=2")
    assert "data.sources.NAME.path is not set for 34 sources (" in said
    assert " mmc4, " in said
    assert "launch/prepare.py" in said
    assert "+experiment=demo" in said


def test_no_predecessor(refused: Refused, stages: Stages) -> None:
    said = refused("stage=2", *DEMO, "run.name=none", "init_from=null")
    assert "no weights are given for sam, siglip, adaptor, language" in said
    assert "init_from=runs/NAME" in said


@pytest.mark.parametrize("stage", [2, 3])
def test_a_stage_that_would_start_with_a_random_adaptor(
    refused: Refused, stages: Stages, stage: int
) -> None:
    start = "runs/demo/warm_start"
    weights = [f"model.weights.{part}={start}/{part}" for part in ("sam", "siglip", "language")]
    said = refused(f"stage={stage}", *DEMO, "run.name=none", "init_from=null", *weights)
    assert "no weights are given for adaptor. Start from a finished run of the stage" in said


def test_a_predecessor_that_is_not_there(refused: Refused, stages: Stages) -> None:
    said = refused("stage=2", *DEMO, "run.name=none", "init_from=runs/demo/nothing")
    assert "init_from=runs/demo/nothing is neither a run directory with checkpoints" in said


def test_stage_3_from_stage_1(refused: Refused, stages: Stages) -> None:
    said = refused("stage=3", *DEMO, "run.name=none", "init_from=runs/demo/stage1")
    assert "is of stage 1 (align); this stage starts from published weights or stage 2" in said


def test_other_base_weights(refused: Refused, stages: Stages) -> None:
    said = refused("stage=2", *DEMO, "run.name=none", "model.weights.sam=other/sam")
    assert "The weights of sam at other/sam have the digest" in said
    assert "model.weights.sam=PATH" in said


def test_weights_that_the_predecessor_trained(refused: Refused, stages: Stages) -> None:
    said = refused("stage=3", *DEMO, "run.name=none", "model.weights.language=other/language")
    assert "would replace weights that" in said


def test_weights_that_are_not_there(refused: Refused, stages: Stages) -> None:
    said = refused("stage=1", *DEMO, "run.name=none", "model.weights.sam=nowhere")
    assert "nowhere" in said


def test_a_freeze_pattern_that_matches_nothing(refused: Refused, stages: Stages) -> None:
    said = refused("stage=2", *DEMO, "run.name=none", "stage.freeze=[language.layer.0.*]")
    assert "freeze pattern 'language.layer.0.*' matches no parameter" in said
    assert "language.model." in said


def test_an_unknown_part(refused: Refused) -> None:
    said = refused("stage=2", *DEMO, "stage.trainable=[adaptor,languag]")
    assert "'languag'; this model's parts are sam, siglip, adaptor, language" in said


def test_a_part_that_must_stay_frozen(refused: Refused) -> None:
    said = refused("stage=2", *DEMO, "stage.trainable=[adaptor,language,siglip]")
    assert "stage 2 (pretrain)" in said
    assert "siglip" in said


def test_no_tokenizer(refused: Refused, workspace: Path) -> None:
    said = refused("stage=1", *DEMO, "run.name=none", "model.tokenizer=nowhere")
    assert "no tokenizer.json in nowhere" in said


def test_a_missing_shard(refused: Refused, stages: Stages) -> None:
    shards = '"data/demo/emoji_caption/train/emoji_caption-{000000..000001}.tar"'
    said = refused("stage=1", *DEMO, "run.name=none", f"data.sources.emoji.path={shards}")
    assert "source 'emoji': 1 of 2 shard names match no file" in said
    assert "emoji_caption-000001.tar" in said


def test_a_source_that_is_not_prepared(refused: Refused, stages: Stages, workspace: Path) -> None:
    shutil.copytree(
        workspace / "data/demo/emoji_caption/train",
        workspace / "fresh",
        ignore=shutil.ignore_patterns(".vltrain"),
        dirs_exist_ok=True,
    )
    said = refused("stage=1", *DEMO, "run.name=none", "data.sources.emoji.path=fresh")
    assert "python launch/prepare.py" in said
    assert "emoji" in said


def test_a_shard_that_changed(refused: Refused, stages: Stages, workspace: Path) -> None:
    folder = workspace / "changed"
    shutil.copytree(workspace / "data/demo/emoji_caption/train", folder, dirs_exist_ok=True)
    with (folder / "emoji_caption-000000.tar").open("ab") as shard:
        shard.write(bytes(512))
    said = refused("stage=1", *DEMO, "run.name=none", "data.sources.emoji.path=changed")
    assert "emoji_caption-000000.tar" in said
    assert "python launch/prepare.py" in said


def test_lengths_that_were_not_measured(refused: Refused, stages: Stages) -> None:
    said = refused("stage=1", *DEMO, "run.name=none", "data.packing.sequence_length=300")
    assert "python launch/prepare.py" in said


def test_sources_that_will_repeat_are_named(in_process: InProcess, workspace: Path) -> None:
    words = ("stage=2", *DEMO, "run.name=none", "init_from=null")
    prepare_here(workspace, *words)
    ended = in_process(*words, "data.mixture.repetition_warning=0.01")
    assert ended.said("source 'shapes' will be seen ") == 1
    assert ended.said("(data.mixture.repetition_warning=0.01): give it less weight") >= 1


CHANGED = {
    "data.batch.sequences=8": "(data.batch.sequences: 4 there, 8 here)",
    "data.mixture.language_share=0.5": "data.mixture.language_share: ",
    "data.sources.emoji.weight=9": "data.sources.emoji.weight: ",
    "run.seed=5": "seed: 0 there, 5 here",
    "model.language.norm_eps=1e-5": "model.language.norm_eps: ",
}


@pytest.mark.parametrize("word", CHANGED)
def test_another_run_in_the_same_directory(refused: Refused, stages: Stages, word: str) -> None:
    said = refused("stage=2", *DEMO, "init_from=runs/demo/stage1", word)
    assert "this run directory has a checkpoint of another run" in said
    assert CHANGED[word] in said
    what = {"data": "recipe", "model": "model", "run": "seed"}[word.split(".")[0]]
    assert f"Not in resume.accept: {what}" in said
    assert f"resume.accept=[{what}" in said or f"resume.accept=[seed,{what}" in said
    assert "Give another run.name" in said


def test_only_what_is_named_is_accepted(refused: Refused, stages: Stages) -> None:
    said = refused("stage=2", *DEMO, "run.seed=5", "resume.accept=[model]")
    assert "Not in resume.accept: seed" in said


def test_an_accepted_recipe_goes_on(
    stages: Stages, workspace: Path, in_process: Callable[..., Finished], refused: Refused
) -> None:
    """The same weights, step and chain, with the new data from its beginning."""
    run = workspace / "runs/demo/other_data"
    shutil.copytree(stages.runs[1], run)
    words = ("stage=1", *DEMO, "run.name=other_data", "optim.steps=8", "data.batch.sequences=2")
    ended = run_forked(*words, "resume.accept=[recipe]", processes=1, cwd=workspace)
    assert ended.code == 0, ended.err
    assert "accepted: recipe: " in ended.err
    assert "data.batch.sequences: 4 there, 2 here" in ended.err
    assert "the new data recipe begins at its own beginning, at step 6" in ended.err
    rows, before = rows_of(run), rows_of(stages.runs[1])
    assert rows[:6] == before
    assert [(row["step"], row["packs"]) for row in rows[6:]] == [(7, 2), (8, 2)]
    # Now the checkpoint is of the new recipe: nothing more to accept.
    ended = run_forked(*words, "optim.steps=9", processes=1, cwd=workspace)
    assert ended.code == 0, ended.err
    assert [row["step"] for row in rows_of(run)] == list(range(1, 10))
    # Each of the new steps is found again, from where the new data began.
    ended = in_process("step", "7-9", "runs/demo/other_data", script="inspect_data")
    assert ended.code == 0, ended.err
    assert ended.out.count("is the one in steps.jsonl") == 3
    said = refused("step", "5", "runs/demo/other_data", script="inspect_data")
    assert "step 5 was trained on other data: after step 6" in said


def test_another_stage_in_the_same_directory(refused: Refused, stages: Stages) -> None:
    said = refused("stage=3", *DEMO, "run.name=stage2")
    assert "stage: 2 there, 3 here" in said


def test_resume_never(refused: Refused, stages: Stages) -> None:
    said = refused("stage=1", *DEMO, "resume=never")
    assert "runs/demo/stage1 already has a checkpoint of step 6" in said


def test_resume_required(refused: Refused, stages: Stages) -> None:
    said = refused("stage=1", *DEMO, "run.name=none", "resume=required")
    assert "resume=required, and runs/demo/none/checkpoints has no checkpoint" in said


def test_a_refused_run_leaves_the_old_one_alone(stages: Stages, refused: Refused) -> None:
    run = stages.runs[1]
    before = {p: p.read_bytes() for p in run.iterdir() if p.is_file()}
    refused("stage=1", *DEMO, "data.batch.sequences=8")
    assert {p: p.read_bytes() for p in run.iterdir() if p.is_file()} == before


def test_a_damaged_newest_checkpoint_and_a_stale_lock(
    in_process: InProcess, stages: Stages, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before is taken, what came after it is done again; no operator is compiled."""
    run = workspace / "runs/demo/damaged"
    shutil.copytree(stages.runs[1], run)
    weights = run / "checkpoints/step-00000006/weights-00000-000.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    lock = workspace / "extensions/deepspeed_shm_comm/lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(lock.parents[1]))
    ended = in_process("stage=1", *DEMO, "run.name=damaged")
    assert ended.code == 0, ended.err
    assert "Checkpoint of step 6 is passed over: " in ended.err
    assert "weights-00000-000.safetensors has " in ended.err
    assert ended.said("resuming from runs/demo/damaged/checkpoints/step-00000004") == 1
    assert ended.said("A build of the operator deepspeed_shm_comm was started and not finished")
    assert batches_of(run) == batches_of(stages.runs[1])


def batches_of(run: Path) -> list[tuple[int, str]]:
    return [(row["step"], row["chain"]) for row in rows_of(run)]


def ended_by_itself(workspace: Path, *words: str, obeys_modes: bool = False) -> str:
    """What a run said that trains before it ends with an error: in a process of its own, because
    DeepSpeed cannot be started twice in one."""
    if obeys_modes:
        ended = launch(python(), *words, cwd=workspace, obeys_modes=True)
    else:
        ended = run_forked(*words, processes=1, cwd=workspace)
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    return ended.err


def test_a_checkpoint_without_permission(stages: Stages, workspace: Path) -> None:
    checkpoints = workspace / "runs/demo/no_place/checkpoints"
    checkpoints.mkdir(parents=True, mode=0o555)
    words = ("stage=1", *DEMO, "run.name=no_place", "optim.steps=2")
    said = ended_by_itself(workspace, *words, obeys_modes=True)
    assert "step-00000002 cannot be made: [Errno 13] Permission denied" in said
    assert "The checkpoint of step 2 could not be written to runs/demo/no_place/checkpoints" in said
    assert "must be writable and on a file system that every node shares" in said


def test_a_run_directory_that_cannot_be_made(refused: Refused, workspace: Path) -> None:
    (workspace / "occupied").touch()
    said = refused("stage=1", *DEMO, "run.root=occupied", "model.tokenizer=null")
    assert "the run's files in occupied/stage1 cannot be written: [Errno 20]" in said


def events_of(run: Path) -> list[tuple[str, int, str]]:
    rows = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [(row["event"], row["step"], row["detail"]) for row in rows]


def test_a_learning_rate_that_is_too_high_is_warned_of_and_borne(
    stages: Stages, workspace: Path
) -> None:
    """After update 22 a thousand times as high, after update 25 so high that the weights are gone:
    a warning; then skipped, back to the last good checkpoint, skipped again, back, and the end. The
    same command with a rate that is right goes on."""
    run = workspace / "runs/demo/too_high"
    words = (
        *("stage=2", *DEMO, "run.name=too_high", "data.mixture.grouping=false"),
        *("checkpoint.every_steps=1", "checkpoint.keep_last=2", "optim.clip_norm=0"),
        *("stability.skip_budget=1", "stability.rollbacks=1", "metrics.wandb.enabled=false"),
    )
    too_high = (
        "optim.steps=50",
        "optim.schedule.kind=step",
        "optim.schedule.milestones=[0.44,0.5]",
        "optim.schedule.factors=[1000,1e33]",
    )
    said = ended_by_itself(workspace, *words, *too_high)
    assert "Too many steps were not finite (stability.skip_budget)" in said
    assert "after the run went back to a checkpoint 1 times (stability.rollbacks)" in said
    # Two are there when it goes back, though checkpoint.keep_last=1: the newest, and a good one.
    assert "Checkpoint of step 27 is passed over: 1 of the steps before it were not finite" in said
    assert "are those of runs/demo/too_high/checkpoints/step-00000025 again" in said
    events = events_of(run)
    spikes = [(step, detail) for word, step, detail in events if word == "loss_spike"]
    assert spikes[0][0] in (24, 25, 26)
    assert " mixed steps; the alarm is at " in spikes[0][1]
    others = [(word, step) for word, step, _ in events if word not in ("loss_spike", "label_share")]
    assert others == [("not_finite", 27), ("rollback", 28), ("not_finite", 30), ("rollback", 31)]
    assert "the weights of step 25, after 25 updates, go on with the data after step 28" in str(
        events
    )
    ended = launch(python(), *words, "optim.steps=33", cwd=workspace)
    assert ended.code == 0, ended.err
    assert ended.said("resuming from runs/demo/too_high/checkpoints/step-00000031") == 1
    rows = rows_of(run)
    assert [row["step"] for row in rows] == list(range(1, 34))
    assert [row["step"] for row in rows if row["skipped"]] == [27, 28, 30, 31]


def test_rows_of_another_run(stages: Stages, workspace: Path) -> None:
    """Such as a checkpoint that was copied under a steps.jsonl that was there."""
    run = workspace / "runs/demo/others_rows"
    shutil.copytree(stages.runs[1], run)
    rows = (run / "steps.jsonl").read_text()
    chain = rows_of(run)[-1]["chain"]
    (run / "steps.jsonl").write_text(rows.replace(chain, "f" * len(chain)))
    words = ("stage=1", *DEMO, "run.name=others_rows", "optim.steps=7")
    said = ended_by_itself(workspace, *words)
    assert f"steps.jsonl ends at step 6 with chain {'f' * len(chain)}, " in said
    assert f"of step 6 with chain {chain}: the rows are of another run" in said
