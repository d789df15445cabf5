"""Shards to micro-batches, all parts real: the same global batches for any ranks and workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from shard_makers import byte_encoder, png, prepare, source_config, write_tar

from vltrain.batch import IGNORE, Modality, RecordKind
from vltrain.data.assign import WorkCost, assign
from vltrain.data.config import (
    BatchConfig,
    DataConfig,
    DecodeMode,
    MixtureConfig,
    OrderConfig,
    PackingConfig,
    SourceConfig,
)
from vltrain.data.loader import MicroBatchDataset, StepLoader
from vltrain.data.pieces import PieceReader, PieceTable
from vltrain.data.plan import Plan
from vltrain.data.recipe import Recipe
from vltrain.data.sources import open_source
from vltrain.processing.train_tokenizer import IMAGE_TOKEN_ID

STEPS = 6
COST = WorkCost(token=1.0, token_squared=0.01, image_token=1.0)


GROUPED = MixtureConfig(language_share=0.5, grouping=True)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SourceConfig]:
    """Two sources of one shard each."""
    folder: Path = tmp_path_factory.mktemp("shards")
    captions = [
        member
        for n in range(60)
        for member in ((f"c{n}.png", png()), (f"c{n}.txt", f"a caption {n}".encode()))
    ]
    texts = [(f"t{n}.txt", (f"Line {n}. " * (n % 12 + 1)).encode()) for n in range(60)]
    write_tar(folder / "captions/0.tar", captions)
    write_tar(folder / "texts/0.tar", texts)
    sources = {
        "captions": source_config(folder / "captions"),
        "texts": source_config(folder / "texts", kind=RecordKind.text, modality=Modality.language),
    }
    prepare(sources, encoder=byte_encoder(sequence_length=64))
    return sources


def opened(
    sources: dict[str, SourceConfig], *, mixture: MixtureConfig, texts_per_sample: float = 0.0
) -> tuple[Plan, MicroBatchDataset]:
    encoder = byte_encoder(sequence_length=64)
    config = DataConfig(
        sources=sources,
        mixture=mixture,
        packing=PackingConfig(
            enabled=True,
            sequence_length=64,
            max_images=2,
            window_samples=32,
            top_up_texts_per_sample=texts_per_sample,
        ),
        batch=BatchConfig(sequences=4),
        order=OrderConfig(block_samples=8, lanes=4),
    )
    found = [open_source(name, source) for name, source in sources.items()]
    tables = tuple(PieceTable(source, encoder_digest=encoder.digest) for source in found)
    dataset = MicroBatchDataset(
        PieceReader(found, tables=tables, encoder=encoder),
        modalities=[source.modality for source in sources.values()],
        image_token_id=IMAGE_TOKEN_ID,
        image_side=32,
        pad_color=(1, 2, 3),
        decode=DecodeMode.exact,
    )
    return Plan(Recipe(tables, config=config), seed=1), dataset


@pytest.fixture(scope="module")
def plan_and_dataset(shards: dict[str, SourceConfig]) -> tuple[Plan, MicroBatchDataset]:
    return opened(shards, mixture=MixtureConfig(language_share=0.5))


def read(plan: Plan, dataset: MicroBatchDataset, *, world=1, rank=0, workers=0, steps=STEPS):
    def mine():
        for step in plan.steps(None):
            if step.step >= steps:
                return
            yield step, assign(step, world=world, micro=2, rank=rank, cost=COST)

    return StepLoader(mine(), dataset=dataset, workers=workers, prefetch_steps=2)


def digests(steps) -> dict[int, bytes]:
    pairs = [
        pair
        for _, micros in steps
        for batch in micros
        for pair in zip(batch.pack_numbers, batch.pack_digests, strict=True)
    ]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_what_is_read_is_what_was_planned(plan_and_dataset):
    plan, dataset = plan_and_dataset
    for step, micros in read(plan, dataset):
        for modality in ("language", "multimodal"):
            assert sum(b.num_tokens[modality] for b in micros) == step.tokens[modality]
            assert sum(b.num_targets[modality] for b in micros) == step.supervised[modality]
        for batch in micros:
            assert batch.faults == ()
            assert int((batch.targets != IGNORE).sum()) == sum(batch.num_targets.values())
            assert int((batch.segments > 0).sum()) == sum(batch.num_tokens.values())


def test_any_ranks_and_workers_read_the_same_packs(plan_and_dataset):
    plan, dataset = plan_and_dataset
    alone = digests(read(plan, dataset))
    assert sorted(alone) == list(range(4 * STEPS))
    assert digests(read(plan, dataset, workers=2)) == alone
    shared = [digests(read(plan, dataset, world=3, rank=rank)) for rank in range(3)]
    assert sum(len(part) for part in shared) == len(alone)
    assert {n: d for part in shared for n, d in part.items()} == alone


def test_text_that_tops_up_multimodal_packs_is_language_in_the_batch_too(shards):
    plan, dataset = opened(shards, mixture=GROUPED, texts_per_sample=2.0)
    mixed = 0
    for step, micros in read(plan, dataset, steps=12):
        for modality in ("language", "multimodal"):
            assert sum(b.num_tokens[modality] for b in micros) == step.tokens[modality]
            assert sum(b.num_targets[modality] for b in micros) == step.supervised[modality]
        if step.modality is Modality.multimodal:
            mixed += step.tokens["language"] > 0
            assert all(pack.images > 0 for pack in step.packs)
    assert mixed > 0


def test_more_ranks_and_workers_than_shards_end_together_with_every_sample_read(shards):
    """Two shards, five ranks, two workers in one of them; the texts are seen once and end it."""
    finite = {**shards, "texts": replace(shards["texts"], max_epochs=1)}
    plan, dataset = opened(finite, mixture=GROUPED)
    planned = list(plan.steps())
    seen: list[str] = []
    for rank in range(5):
        workers = 2 if rank == 3 else 0
        steps = list(read(plan, dataset, world=5, rank=rank, workers=workers, steps=10**6))
        assert [(step.step, len(micros)) for step, micros in steps] == [
            (step.step, 1) for step in planned
        ]
        for _, (batch,) in steps:
            seen += [o.key for row in batch.origins for o in row if o.source == "texts"]
    pieces = sum(ref.source == 1 for s in planned for p in s.packs for ref in p.pieces)
    assert len(seen) == pieces
    assert set(seen) == {f"t{n}" for n in range(60)}
