from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint_samples import FROZEN, WEIGHT, saved

from vltrain.checkpoint.reader import check_fits, read_part_state
from vltrain.checkpoint.store import Checkpoint, open_checkpoint
from vltrain.engine.fragments import FragmentKind
from vltrain.errors import CheckpointError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return open_checkpoint(saved(tmp_path, 10).path(10))


@pytest.mark.parametrize(("offset", "count"), [(0, 6), (3, 2), (0, 4), (4, 2), (5, 1)])
def test_any_run_is_put_together(checkpoint: Checkpoint, offset: int, count: int) -> None:
    read = checkpoint.reader()
    expected = WEIGHT.flatten()[offset : offset + count]
    assert read("adaptor.weight", FragmentKind.master, offset, count).equal(expected)
    moment = read("adaptor.weight", FragmentKind.exp_avg, offset, count)
    assert moment.equal(expected + 100)


def test_a_part_comes_back_whole_with_what_stayed_frozen_in_it(checkpoint: Checkpoint) -> None:
    state = dict(read_part_state(checkpoint.directory, checkpoint.manifest, part="adaptor"))
    assert list(state) == ["adaptor.weight", "adaptor.fixed"]
    assert state["adaptor.weight"].equal(WEIGHT)
    assert state["adaptor.fixed"].equal(FROZEN)
    assert state["adaptor.fixed"].dtype == torch.bfloat16


def test_what_is_not_there_is_named(checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match=r"lacks elements 6 to 8 of adaptor\.weight"):
        checkpoint.reader()("adaptor.weight", FragmentKind.master, 4, 4)
    with pytest.raises(CheckpointError, match=r"did not train there\. They are at /base/language"):
        next(read_part_state(checkpoint.directory, checkpoint.manifest, part="language"))


def test_a_file_that_cannot_be_read_is_named(checkpoint: Checkpoint) -> None:
    (checkpoint.directory / "weights-00000-000.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"weights-00000-000\.safetensors cannot be read"):
        checkpoint.reader()("adaptor.weight", FragmentKind.master, 0, 6)


@pytest.mark.parametrize(
    ("trainable", "words"),
    [
        ({"adaptor.weight": (2, 3), "language.w": (1,)}, r"Not in the checkpoint: language\.w\."),
        ({}, r"Only in the checkpoint: adaptor\.weight\."),
        ({"adaptor.weight": (3, 2)}, r"has shape \(2, 3\), the model wants \(3, 2\)"),
    ],
)
def test_another_model_does_not_fit(
    checkpoint: Checkpoint, trainable: dict[str, tuple[int, ...]], words: str
) -> None:
    check_fits(checkpoint.directory, checkpoint.manifest, trainable={"adaptor.weight": (2, 3)})
    with pytest.raises(CheckpointError, match=words):
        check_fits(checkpoint.directory, checkpoint.manifest, trainable=trainable)
