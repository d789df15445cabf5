from __future__ import annotations

from pathlib import Path

import torch
from checkpoint_samples import fragments, manifest, saved, store

from vltrain.checkpoint import rng


def test_random_states_go_on_as_if_never_stopped(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        rng.seed_generators(5, rank=1)
        store(tmp_path).save(manifest(10), fragments(), rng=rng.capture())
        expected = torch.rand(3)
        rng.seed_generators(5, rank=0)
        assert not torch.rand(3).equal(expected), "ranks differ"
        checkpoint = store(tmp_path).newest()
        assert checkpoint is not None
        states = checkpoint.rng(0, world=1)
        assert states is not None
        rng.restore(states)
        assert torch.rand(3).equal(expected)


def test_another_number_of_ranks_has_none(tmp_path: Path) -> None:
    store(tmp_path).save(manifest(10), fragments(), rng=rng.capture())
    checkpoint = store(tmp_path).newest()
    assert checkpoint is not None
    assert checkpoint.rng(0, world=2) is None
    assert checkpoint.rng(1, world=1) is None


def test_a_checkpoint_of_before_they_were_kept(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, 10).newest()
    assert checkpoint is not None
    assert checkpoint.rng(0, world=1) is None
