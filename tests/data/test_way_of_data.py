"""From shards to micro-batches with every part real: prepare, plan, assign, read, decode,
collate."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from shard_makers import IMAGE_TOKENS, byte_encoder, byte_tokenizer, png, prepare, write_tar

from vltrain.batch import MicroBatch, Modality, RecordKind
from vltrain.data.assign import WorkCost, assign
from vltrain.data.config import (
    BatchConfig,
    DataConfig,
    DecodeMode,
    MixtureConfig,
    PackingConfig,
    SourceConfig,
)
from vltrain.data.loader import MicroBatchDataset, StepLoader
from vltrain.data.pieces import PieceReader, PieceTable, check_modalities
from vltrain.data.plan import Plan
from vltrain.data.recipe import Recipe
from vltrain.data.sources import open_source

STEPS = 6


def shards(folder: Path) -> DataConfig:
    words = [(f"{i}.txt", b"some words %d" % i) for i in range(40)]
    write_tar(folder / "words" / "a.tar", words)
    pictures: list[tuple[str, bytes]] = []
    for i in range(40):
        pictures += [(f"{i}.png", png(8 + i)), (f"{i}.txt", b"picture %d" % i)]
    write_tar(folder / "pictures" / "a.tar", pictures)
    config = DataConfig(
        sources={
            "words": SourceConfig(
                path=str(folder / "words"), kind=RecordKind.text, modality=Modality.language
            ),
            "pictures": SourceConfig(
                path=str(folder / "pictures"),
                kind=RecordKind.caption,
                modality=Modality.multimodal,
            ),
        },
        mixture=MixtureConfig(language_share=0.5),
        packing=PackingConfig(enabled=True, sequence_length=64, window_samples=16, max_images=2),
        batch=BatchConfig(sequences=4, micro=2),
    )
    prepare(config.sources)
    return config


def batches(config: DataConfig, *, workers: int) -> list[MicroBatch]:
    encoder = byte_encoder()
    sources = [open_source(name, source) for name, source in config.sources.items()]
    tables = [PieceTable(source, encoder_digest=encoder.digest) for source in sources]
    check_modalities(tables)
    plan = Plan(Recipe(tables, config=config), seed=1)
    dataset = MicroBatchDataset(
        PieceReader(sources, tables=tables, encoder=encoder),
        modalities=[table.modality for table in tables],
        image_token_id=byte_tokenizer().image_id,
        image_side=16,
        pad_color=(127, 127, 127),
        decode=DecodeMode.exact,
    )
    cost = WorkCost(token=1.0, token_squared=0.0, image_token=1.0)
    planned = (
        (step, assign(step, world=1, micro=2, rank=0, cost=cost))
        for step in islice(plan.steps(), STEPS)
    )
    loader = StepLoader(planned, dataset=dataset, workers=workers, prefetch_steps=1)
    return [micro for _, micros in loader for micro in micros]


def test_what_is_planned_is_what_comes(tmp_path: Path) -> None:
    config = shards(tmp_path)
    alone, pooled = batches(config, workers=0), batches(config, workers=2)
    assert len(alone) == STEPS * 2
    assert [b.pack_digests for b in alone] == [b.pack_digests for b in pooled]
    assert not any(b.faults for b in alone)
    image = byte_tokenizer().image_id
    assert sum(b.num_images for b in alone) > 0
    for batch in alone:
        assert int((batch.ids == image).sum()) == batch.num_images * IMAGE_TOKENS
        assert batch.images.shape == (batch.num_images, 16, 16, 3)


def test_an_image_damaged_after_prepare_is_a_counted_hole(tmp_path: Path) -> None:
    config = shards(tmp_path)
    whole = batches(config, workers=0)
    shard = tmp_path / "pictures" / "a.tar"
    stat, data = shard.stat(), bytearray(shard.read_bytes())
    for i in range(40):
        start = data.find(png(8 + i))
        data[start + 34 : start + 60] = bytes(26)  # the pixels; the header stays
    shard.write_bytes(data)
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    damaged = batches(config, workers=0)
    faults = [fault for batch in damaged for fault in batch.faults]
    assert len(faults) == sum(batch.num_images for batch in whole)
    assert {(f.origin.source, f.action) for f in faults} == {("pictures", "hole")}
    assert [b.pack_numbers for b in damaged] == [b.pack_numbers for b in whole]
    for before, after in zip(whole, damaged, strict=True):
        assert before.num_tokens["language"] == after.num_tokens["language"]
        assert after.num_tokens["multimodal"] == 0
