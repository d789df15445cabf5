from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_samples import WEIGHT, flip_a_byte, fragments, manifest, saved

from vltrain.checkpoint.handoff import Expected, HandOff, OriginKind, continue_from, hand_off
from vltrain.checkpoint.health import Health
from vltrain.checkpoint.manifest import PartRecord
from vltrain.checkpoint.store import open_checkpoint
from vltrain.errors import CheckpointError, ContractError

EXPECTED = {
    "tokenizer_digest": "t0",
    "image_token_id": 5,
    "geometry": {"tokens_per_image": 4},
    "model_digest": "m0",
}


def start(
    init_from: Path | None,
    *,
    predecessors: tuple[int, ...] = (1,),
    weights: dict[str, str | None] | None = None,
    **changes: Any,
) -> HandOff:
    return hand_off(
        init_from,
        weights=weights or {},
        parts=("adaptor", "language"),
        predecessors=predecessors,
        expected=Expected(**(EXPECTED | changes)),
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    saved(tmp_path / "run" / "checkpoints", 10, 20)
    return tmp_path / "run"


def test_weights_that_are_not_finite_are_not_handed_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    made = saved(run / "checkpoints", 10, health=Health(updates=10, skipped_lately=0))
    bad = dataclasses.replace(next(fragments()), values=torch.tensor([1.0, math.nan]))
    others = [f for f in fragments() if (f.kind, f.offset) != (bad.kind, bad.offset)]
    made.save(manifest(20, health=Health(updates=20, skipped_lately=0)), [bad, *others])
    newest, older = (run / "checkpoints" / f"step-000000{step}" for step in (20, 10))
    assert origins(start(run))["adaptor"] == ("checkpoint", str(older), None)
    with pytest.raises(CheckpointError, match=r"step-00000020: values in it are not finite\. Use"):
        start(newest)


def origins(found: HandOff) -> dict[str, tuple[str, str | None, str | None]]:
    return {
        p: (o.kind.value, str(o.path) if o.path else None, o.digest) for p, o in found.parts.items()
    }


def test_a_run_gives_trained_parts_from_its_newest_checkpoint(run: Path) -> None:
    found = start(run)
    newest = run / "checkpoints" / "step-00000020"
    assert origins(found) == {
        "adaptor": ("checkpoint", str(newest), None),
        "language": ("published", "/base/language", "d1"),
    }
    assert dict(found.part_state("adaptor"))["adaptor.weight"].equal(WEIGHT)
    older = run / "checkpoints" / "step-00000010"
    assert origins(start(older))["adaptor"] == ("checkpoint", str(older), None)


def test_frozen_weights_may_move_but_not_change(run: Path) -> None:
    found = start(run, weights={"language": "/moved"})
    assert origins(found)["language"] == ("published", "/moved", "d1")
    found.check_digest("language", found="d1")
    found.check_digest("adaptor", found="anything")
    with pytest.raises(ContractError, match=r"language at /moved have the digest d2.*beside d1"):
        found.check_digest("language", found="d2")


def test_trained_weights_cannot_be_replaced(run: Path) -> None:
    with pytest.raises(ContractError, match=r"model\.weights\.adaptor=/other would replace"):
        start(run, weights={"adaptor": "/other"})


def test_a_wrong_predecessor_is_refused(run: Path) -> None:
    with pytest.raises(ContractError, match=r"is of stage 1 \(align\); this stage starts from st"):
        start(run, predecessors=(2,))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokenizer_digest": "t1"}, "another tokenizer: found t0, this run has t1"),
        ({"image_token_id": 6}, "another image token id: found 5, this run has 6"),
        ({"geometry": {"tokens_per_image": 9}}, "another image geometry"),
        ({"model_digest": "m1"}, "another model"),
    ],
)
def test_what_must_be_the_same(run: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ContractError, match=words):
        start(run, **change)


def test_published_weights_part_by_part(tmp_path: Path) -> None:
    found = start(None, predecessors=(0,), weights={"language": "/base"})
    assert origins(found) == {
        "adaptor": ("fresh", None, None),
        "language": ("published", "/base", None),
    }
    assert found.parts["adaptor"].kind is OriginKind.fresh
    (tmp_path / "config.json").write_text("{}")
    found = start(tmp_path, predecessors=(0, 1), weights={"language": "/base"})
    assert origins(found)["adaptor"] == ("published", str(tmp_path), None)
    assert origins(found)["language"] == ("published", "/base", None)


def test_a_stage_that_needs_a_predecessor_says_so(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"finished run of stage 1; found init_from=nothing"):
        start(None)
    with pytest.raises(ContractError, match="is neither a run directory with checkpoints"):
        start(tmp_path)
    with pytest.raises(ContractError, match="is neither a run directory with checkpoints"):
        start(tmp_path / "absent")


def test_damage_is_found_before_anything_is_loaded(run: Path) -> None:
    newest = run / "checkpoints" / "step-00000020"
    flip_a_byte(newest / "weights-00000-000.safetensors")
    with pytest.raises(CheckpointError, match=r"is damaged: bytes of weights-00000-000"):
        start(newest)
    assert origins(start(run))["adaptor"][1] == str(run / "checkpoints" / "step-00000010")


def test_an_unfinished_predecessor_is_mentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path / "checkpoints", 10, finished=False)
    with caplog.at_level(logging.WARNING):
        start(tmp_path)
    assert "did not finish: its newest checkpoint is of step 10" in caplog.text


def test_a_part_that_nobody_kept_is_named(tmp_path: Path) -> None:
    parts = {
        "adaptor": PartRecord(trained=True, path=None, digest=None),
        "language": PartRecord(trained=False, path=None, digest="d1"),
    }
    saved(tmp_path / "one" / "checkpoints", 10, parts=parts)
    with pytest.raises(ContractError, match="kept 'language' frozen and freshly initialised"):
        start(tmp_path / "one")
    del parts["language"]
    saved(tmp_path / "two" / "checkpoints", 10, parts=parts)
    with pytest.raises(ContractError, match="has no part 'language'; it has adaptor"):
        start(tmp_path / "two")


def test_a_resumed_run_takes_its_own_parts(run: Path, tmp_path: Path) -> None:
    newest = run / "checkpoints" / "step-00000020"
    weights = {"adaptor": "/base/adaptor", "language": None}
    found = continue_from(open_checkpoint(newest), weights=weights, parts=("adaptor", "language"))
    # The config still names what the trained part began with; the checkpoint has it now.
    assert origins(found) == {
        "adaptor": ("checkpoint", str(newest), None),
        "language": ("published", "/base/language", "d1"),
    }
    parts = {
        "adaptor": PartRecord(trained=True, path=None, digest=None),
        "language": PartRecord(trained=False, path=None, digest="d1"),
    }
    path = saved(tmp_path / "fresh", 10, parts=parts).path(10)
    found = continue_from(open_checkpoint(path), weights={}, parts=("adaptor", "language"))
    assert origins(found)["language"] == ("fresh", None, "d1")  # from the seed, and held to it
