"""Gradients of the tiny hybrid model by the real engine, however the same documents are packed and
spread over ranks and micro-batches, against plain torch with one document at a time. Run by
torchrun: gradient_table.py OUT_FILE.

Rank 0 writes, per ZeRO stage, split and way of packing: the largest difference of any element of
any gradient, the largest element of the reference, and both losses.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from model_training import build

from vltrain import distributed
from vltrain.batch import IGNORE
from vltrain.engine.config import Dtype, EngineConfig
from vltrain.engine.engine import Engine, build_engine
from vltrain.engine.fragments import FragmentKind
from vltrain.engine.start import start
from vltrain.models.build import BuiltModel
from vltrain.models.trainable import part_of
from vltrain.optim.config import OptimConfig
from vltrain.optim.groups import parameter_groups

CASE = {
    "model": "tiny",
    "parts": ["siglip", "adaptor", "language"],
    "overrides": {},
    "recompute": "full",
}
OPTIM = OptimConfig(lr=1.0, steps=10, clip_norm=0.0)
TOKENS_PER_IMAGE = 16


@dataclass(frozen=True, kw_only=True)
class Document:
    """seed: of its tokens and picture."""

    seed: int
    length: int
    image: bool = False
    labelled: bool = True


IMAGE = (
    Document(seed=1, length=40, image=True),
    Document(seed=2, length=56, image=True),
)
TEXT = (Document(seed=3, length=24), Document(seed=4, length=48))
MORE_TEXT = (Document(seed=5, length=32), Document(seed=6, length=8))
BOTH = (Document(seed=7, length=48, image=True), Document(seed=8, length=24))
UNLABELLED = (
    Document(seed=9, length=32, image=True, labelled=False),
    Document(seed=10, length=16, labelled=False),
)
MORE_UNLABELLED = (Document(seed=11, length=24, labelled=False),)
SPLITS = {
    "mixed": (IMAGE, TEXT, UNLABELLED, BOTH),
    "a text-only rank": (IMAGE, TEXT, BOTH, MORE_TEXT),
    "a rank without labels": (IMAGE, UNLABELLED, BOTH, MORE_UNLABELLED),
}
"""Four micro-batches of a global step: rank r of w takes r, r + w, ..."""


def row_of(document: Document) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids and targets (length,), and pictures uint8 (0 or 1, 64, 64, 3)."""
    generator = torch.Generator().manual_seed(document.seed)
    ids = torch.randint(4, 512, (document.length,), generator=generator)
    targets = ids.roll(-1)
    targets[-1] = IGNORE
    if document.image:
        targets[: 3 + TOKENS_PER_IMAGE] = IGNORE
    if not document.labelled:
        targets[:] = IGNORE
    squares = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8, generator=generator)
    return ids, targets, squares[: int(document.image)]


def inputs(built: BuiltModel, rows: list[tuple[Document, ...]]) -> dict:
    """One micro-batch: each row holds its documents behind one another, then padding."""
    width = max(sum(document.length for document in row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    positions, targets = torch.zeros_like(ids), torch.full_like(ids, IGNORE)
    segments = torch.zeros(len(rows), width, dtype=torch.int32)
    images, image_positions = [], []
    for number, row in enumerate(rows):
        begin = 0
        for segment, document in enumerate(row, start=1):
            end = begin + document.length
            ids[number, begin:end], targets[number, begin:end], squares = row_of(document)
            positions[number, begin:end] = torch.arange(document.length)
            segments[number, begin:end] = segment
            images.append(squares)
            first = number * width + begin + 2
            image_positions += [torch.arange(first, first + TOKENS_PER_IMAGE)] * len(squares)
            begin = end
    return {
        "ids": ids,
        "positions": positions,
        "segments": segments,
        "targets": targets,
        "image_positions": torch.cat([*image_positions, torch.zeros(0, dtype=torch.int64)]),
        "features": built.frozen.encode(torch.cat(images)),
    }


def reference(split: tuple[tuple[Document, ...], ...]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss per label token and its gradients (flat), one document at a time."""
    built = build(CASE)
    documents = [document for micro in split for document in micro]
    targets = sum(int((row_of(document)[1] != IGNORE).sum()) for document in documents)
    total = 0.0
    for document in documents:
        loss = built.module(**inputs(built, [(document,)])) / targets
        loss.backward()
        total += float(loss.detach())
    named = built.module.named_parameters()
    return total, {n: p.grad.flatten() for n, p in named if p.grad is not None}


def gradients(
    zero_stage: int, split: tuple[tuple[Document, ...], ...], *, packed: bool
) -> tuple[float, Engine]:
    """Loss of one step, and the engine after it."""
    built = build(CASE)
    rank, world = distributed.rank(), distributed.world_size()
    mine = split[rank::world]
    engine = build_engine(
        built.module,
        groups=parameter_groups(built.module.named_parameters(), part_of=part_of, config=OPTIM),
        config=EngineConfig(
            zero_stage=zero_stage,
            dtype=Dtype.fp32,
            param_persistence_threshold=0,
            bucket_elements=20_000,  # several reductions a step
        ),
        clip_norm=OPTIM.clip_norm,
        micro_batch_size=1,
        micro_batches_per_step=len(mine),
        device=torch.device("cpu"),
    )
    documents = [document for micro in split for document in micro]
    targets = sum(int((row_of(document)[1] != IGNORE).sum()) for document in documents)
    for number, micro in enumerate(mine, start=1):
        rows = [micro] if packed else [(document,) for document in micro]
        engine.begin_micro(last=number == len(mine))
        engine.backward(engine.forward(inputs(built, rows)) * world / targets)
    return engine.apply(dict.fromkeys(engine.parts, 1.0)).loss, engine


def compared(engine: Engine, expected: dict[str, torch.Tensor]) -> float:
    """The largest difference of a gradient: after one update, AdamW's first moment is a known share
    of it."""
    found = {name: torch.full_like(flat, torch.nan) for name, flat in expected.items()}
    own = [
        (fragment.name, fragment.offset, fragment.values / (1 - OPTIM.beta1))
        for fragment in engine.export_fragments()
        if fragment.kind is FragmentKind.exp_avg
    ]
    for name, offset, values in (run for part in distributed.gather_objects(own) for run in part):
        found[name][offset : offset + len(values)] = values
    worst = [float((found[name] - flat).abs().max()) for name, flat in expected.items()]
    assert not any(difference != difference for difference in worst), "a gradient is not there"
    return max(worst)


def main() -> None:
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    start(EngineConfig(timeout_seconds=300))
    rows = []
    for name, split in SPLITS.items():
        expected_loss, expected = reference(split)
        for zero_stage in range(4):
            for packed in (True, False):
                loss, engine = gradients(zero_stage, split, packed=packed)
                rows.append(
                    {
                        "cell": f"ZeRO {zero_stage}, {name}, {'packed' if packed else 'unpacked'}",
                        "difference": compared(engine, expected),
                        "largest": max(float(flat.abs().max()) for flat in expected.values()),
                        "loss": loss,
                        "expected_loss": expected_loss,
                    }
                )
    if distributed.is_first():
        out.write_text(json.dumps(rows))
    distributed.barrier()


if __name__ == "__main__":
    main()
