"""Small checkpoints without an engine, for tests of what reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vltrain.checkpoint.config import CheckpointConfig
from vltrain.checkpoint.manifest import Manifest, ParamRecord, PartRecord
from vltrain.checkpoint.store import CheckpointStore
from vltrain.engine.fragments import Fragment, FragmentKind

WEIGHT = torch.arange(6.0).view(2, 3)
FROZEN = torch.tensor([7.0, 8.0], dtype=torch.bfloat16)


def manifest(step: int, **changes: Any) -> Manifest:
    made = Manifest(
        created="2026-01-01T00:00:00Z",
        step=step,
        finished=True,
        stage={"number": 1, "name": "align", "policy": "align"},
        run={"name": "demo", "dir": "runs/demo", "wandb_id": "w1"},
        config_digest="c0",
        model_digest="m0",
        tokenizer_digest="t0",
        image_token_id=5,
        geometry={"tokens_per_image": 4},
        recipe_digest="r0",
        seed=3,
        cursor={"packs": {"language": [1, 2]}},
        chain_head="ab",
        counters={"tokens": {"language": 10}},
        parts={
            "adaptor": PartRecord(trained=True, path=None, digest=None),
            "language": PartRecord(trained=False, path="/base/language", digest="d1"),
        },
        params={
            "adaptor.weight": ParamRecord(shape=(2, 3), dtype="float32", part="adaptor"),
            "adaptor.fixed": ParamRecord(shape=(2,), dtype="bfloat16", part="adaptor"),
        },
        world={"size": 1, "zero_stage": 1},
    )
    return dataclasses.replace(made, **changes)


def fragments() -> Iterator[Fragment]:
    """adaptor.weight in two runs, as two ranks would hold it."""
    flat = WEIGHT.flatten()
    for kind in (FragmentKind.master, FragmentKind.exp_avg, FragmentKind.exp_avg_sq):
        for offset, count in ((4, 2), (0, 4)):
            values = flat[offset : offset + count] + (0 if kind is FragmentKind.master else 100)
            yield Fragment(name="adaptor.weight", kind=kind, offset=offset, values=values)
    yield Fragment(name="adaptor.fixed", kind=FragmentKind.frozen, offset=0, values=FROZEN)


def store(
    directory: Path, *, keep_last: int = 3, keep_every: int = 0, keep_best: int = 0
) -> CheckpointStore:
    config = CheckpointConfig(keep_last=keep_last, keep_every_steps=keep_every, keep_best=keep_best)
    return CheckpointStore(directory, config=config)


def saved(directory: Path, *steps: int, **changes: Any) -> CheckpointStore:
    made = store(directory)
    for step in steps:
        made.save(manifest(step, **changes), fragments())
    return made


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
