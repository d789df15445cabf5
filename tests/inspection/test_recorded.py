"""A step against the run's own record."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vltrain.checkpoint.manifest import Manifest, to_json
from vltrain.data.digest import chain
from vltrain.errors import CheckpointError, ConfigError
from vltrain.inspection.recorded import RecordedRun, prove, read_recorded, run_directory
from vltrain.metrics.events import OTHER_DATA, EventLog
from vltrain.metrics.rows import StepRow

DIGESTS = {1: "a1", 2: "b2", 3: "c3"}


def row(step: int, *, digest: str, head: str) -> StepRow:
    return StepRow(
        step=step,
        time=0.0,
        stage="align",
        loss=1.0,
        lr={},
        grad_norm=1.0,
        modality=None,
        tokens={},
        planned_tokens={"language": 3, "multimodal": 4},
        supervised={},
        images=0,
        packs=1,
        holes=0,
        language_share_target=0.5,
        language_share_realised=0.5,
        digest=digest,
        chain=head,
        seconds=1.0,
        data_wait_seconds=0.0,
        skipped=False,
    )


def manifest(step: int, *, recipe: str = "r", seed: int = 0) -> Manifest:
    return Manifest(
        created="",
        step=step,
        finished=False,
        stage={},
        run={},
        config_digest="",
        model_digest="",
        tokenizer_digest="",
        image_token_id=0,
        geometry={},
        recipe_digest=recipe,
        seed=seed,
        cursor={"step": step},
        chain_head="",
        counters={},
        parts={},
        params={},
        world={},
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Steps 1 to 3, checkpoints of steps 2 and 3."""
    head, lines = "", []
    for step, digest in DIGESTS.items():
        head = chain(head, step - 1, digest)
        lines.append(row(step, digest=digest, head=head).to_line())
    (tmp_path / "steps.jsonl").write_text("".join(lines))
    (tmp_path / "config.yaml").write_text("")
    for step in (2, 3):
        directory = tmp_path / f"checkpoints/step-{step:08d}"
        directory.mkdir(parents=True)
        (directory / "manifest.json").write_text(to_json(manifest(step)))
        (directory / "fragments.json").write_text("[]")
    return tmp_path


class Begins:
    """A plan, as far as a cursor is asked of it."""

    def cursor_at(self, **counted: int) -> dict:
        return {"begins": True, **counted}


def before(recorded: RecordedRun, step: int):
    return recorded.cursor_before(step, plan=Begins())  # type: ignore[arg-type]


def change(run: Path, step: int, **values) -> None:
    """Edit the row of a step."""
    lines = (run / "steps.jsonl").read_text().splitlines()
    lines[step - 1] = json.dumps({**json.loads(lines[step - 1]), **values})
    (run / "steps.jsonl").write_text("\n".join(lines) + "\n")


def test_a_step_that_was_recorded(run: Path) -> None:
    recorded = read_recorded(run)
    for step, digest in DIGESTS.items():
        proof = prove(recorded, step=step, digest=digest)
        assert proof is not None
        assert proof.holds
        assert proof.is_linked is True
        assert f"digest {digest} is the one in steps.jsonl, and links" in proof.words()
    assert prove(recorded, step=4, digest="d4") is None


def test_other_data(run: Path) -> None:
    proof = prove(read_recorded(run), step=2, digest="xx")
    assert proof is not None
    assert not proof.holds
    assert "step 2: digest xx, but steps.jsonl has b2" in proof.words()
    assert "ledger.jsonl" in proof.words()


def test_an_edited_row_breaks_the_chain(run: Path) -> None:
    change(run, 2, digest="xx")
    proof = prove(read_recorded(run), step=2, digest="xx")
    assert proof is not None
    assert not proof.holds
    assert "its chain does not lead from the row before" in proof.words()


def test_a_lost_row_proves_nothing_of_the_chain(run: Path) -> None:
    lines = (run / "steps.jsonl").read_text().splitlines()
    (run / "steps.jsonl").write_text(lines[2] + "\n")
    proof = prove(read_recorded(run), step=3, digest="c3")
    assert proof is not None
    assert proof.holds
    assert proof.is_linked is None


def test_the_nearest_cursor_before_a_step(run: Path) -> None:
    recorded = read_recorded(run)
    assert before(recorded, 2) is None
    assert before(recorded, 3) == {"step": 2}
    assert before(recorded, 9) == {"step": 3}


def test_data_that_was_exchanged_under_way_begins_after_its_step(run: Path) -> None:
    """Steps 1 and 2 are of other data; the checkpoint of step 2 may be kept or not."""
    for path, after in ((run / "checkpoints/step-00000002", 2), (None, 2)):
        if path is None:
            shutil.rmtree(run / "checkpoints/step-00000002")
        else:
            EventLog(run / "events.jsonl").append(OTHER_DATA, step=after, detail="until here r")
        recorded = read_recorded(run)
        assert before(recorded, 3) == {"begins": True, "step": 2, "packs": 2, "tokens": 14}
        assert before(recorded, 4) == {"step": 3}
        for step in (1, 2):
            with pytest.raises(CheckpointError) as refused:
                before(recorded, step)
            said = str(refused.value)
            assert f"step {step} was trained on other data: after step 2 {run} was given" in said
            assert "copy it out of checkpoints/ to another folder" in said
    lines = (run / "steps.jsonl").read_text().splitlines()
    (run / "steps.jsonl").write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(CheckpointError, match=r"steps\.jsonl has 1 rows up to there"):
        before(read_recorded(run), 3)


def test_a_checkpoint_that_was_copied_away_stands_for_itself(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "kept" / "best"
    shutil.copytree(run / "checkpoints/step-00000002", copy)
    (copy / "config.yaml").write_text("")
    assert run_directory(copy) == copy
    recorded = read_recorded(copy)
    assert recorded.rows == {}
    assert before(recorded, 3) == {"step": 2}
    with pytest.raises(CheckpointError, match="was trained on data recipe r with seed 0"):
        recorded.refuse_other(recipe="other", seed=0)


def test_a_damaged_checkpoint_is_passed_over(run: Path) -> None:
    (run / "checkpoints/step-00000003/manifest.json").write_text("{")
    assert before(read_recorded(run), 9) == {"step": 2}


@pytest.mark.parametrize(("recipe", "seed"), [("other", 0), ("r", 1)])
def test_other_data_than_the_run_was_trained_on(run: Path, recipe: str, seed: int) -> None:
    recorded = read_recorded(run)
    recorded.refuse_other(recipe="r", seed=0)
    with pytest.raises(CheckpointError, match="was trained on data recipe r with seed 0"):
        recorded.refuse_other(recipe=recipe, seed=seed)


def test_a_run_is_found_from_its_checkpoints_too(run: Path, tmp_path: Path) -> None:
    assert run_directory(run) == run
    assert run_directory(run / "checkpoints/step-00000002") == run.resolve()
    with pytest.raises(ConfigError, match="nowhere is no run directory"):
        run_directory(tmp_path / "nowhere")
