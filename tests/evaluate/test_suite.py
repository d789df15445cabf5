"""The whole suite on shards and a real tiny model; and how records are chosen."""

from __future__ import annotations

import io
from dataclasses import asdict, replace
from pathlib import Path

import fsspec
import pytest
import torch
from PIL import Image

from vltrain.batch import Learn, Modality, RecordKind
from vltrain.data.columns import extend_catalog
from vltrain.data.config import FaultConfig, KeyRule, RemoteConfig, SourceConfig
from vltrain.data.index import build_index
from vltrain.data.layout import INDEX_SCHEMA, find_shards, index_folder
from vltrain.data.prepare import prepare_sources
from vltrain.data.remote import RemoteStore
from vltrain.data.shardfile import mapped, stamp_of
from vltrain.data.sources import open_source
from vltrain.data.writer import (
    ShardCard,
    caption_record,
    conversation_record,
    text_record,
    write_shards,
)
from vltrain.errors import ConfigError, DataError
from vltrain.evaluate.config import EvaluateConfig
from vltrain.evaluate.samples import read_samples
from vltrain.evaluate.subject import make_rows, subject_of
from vltrain.evaluate.suite import evaluate_model
from vltrain.models.build import build_model
from vltrain.models.config import LanguageConfig, ModelConfig, SamConfig, SiglipConfig

COLORS = ("red", "green", "blue", "white", "black", "orange", "pink", "brown", "gray", "cyan")
CARD = ShardCard(name="t", description="made here", source="made here", licence="CC0")


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), color).save(buffer, format="PNG")
    return buffer.getvalue()


def write_source(
    folder: Path, records, *, kind: RecordKind, modality: Modality, learn: Learn | None = None
) -> SourceConfig:
    write_shards(records, folder, kind=kind, samples_per_shard=4, card=CARD)
    facts = {}
    for shard in find_shards("t", str(folder)):
        stamp = stamp_of(shard, remote=None)
        with mapped(shard, remote=None) as data:
            built = build_index(shard, data, stamp=stamp, index_dir=None, keys=KeyRule.first_dot)
        facts[shard.name] = asdict(built)
        extend_catalog(index_folder(shard, None), header={"schema": INDEX_SCHEMA}, shards=facts)
    return SourceConfig(path=str(folder), kind=kind, modality=modality, learn=learn)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, SourceConfig]:
    root = tmp_path_factory.mktemp("held_out")
    captions = [
        caption_record(f"{n:03d}", image=png(c), extension="png", text=f"a {c} field")
        for n, c in enumerate(COLORS)
    ]
    questions = [
        conversation_record(
            f"what-{n:03d}",
            messages=[("user", "<image>\nWhat color?"), ("assistant", c)],
            images=[png(c)],
        )
        for n, c in enumerate(COLORS)
    ]
    texts = [text_record(f"{n:03d}", text=f"Field number {n}. " * 8) for n in range(5)]
    return {
        "colors": write_source(
            root / "c", captions, kind=RecordKind.caption, modality=Modality.multimodal
        ),
        "quiz": write_source(
            root / "q",
            questions,
            kind=RecordKind.conversation,
            modality=Modality.multimodal,
            learn=Learn.answers,
        ),
        "prose": write_source(root / "p", texts, kind=RecordKind.text, modality=Modality.language),
    }


@pytest.fixture(scope="module")
def tiny_subject(rule_tokenizer):
    config = ModelConfig(
        name="tiny",
        sam=SamConfig(
            image_size=32,
            patch_size=8,
            width=16,
            layers=2,
            heads=2,
            window=2,
            global_layers=[1],
            out_channels=8,
        ),
        siglip=SiglipConfig(image_size=16, patch_size=8, width=16, layers=1, heads=2, ffn=32),
        language=LanguageConfig(
            width=32, layers=2, heads=2, kv_heads=2, ffn=64, vocab_size=300, init_std=0.02
        ),
        image_token_id=rule_tokenizer.image_id,
        loss_chunk_tokens=64,
    )
    built = build_model(
        config,
        trainable=[],
        freeze=[],
        dtype=torch.float32,
        frozen_dtype=torch.float32,
        device="cpu",
        seed=0,
    )
    return subject_of(built, end_id=rule_tokenizer.eos_id)


def run(subject, sources, encoder, *, remote=None, **changes):
    settings = EvaluateConfig(max_samples=8, batch_records=4, max_new_tokens=4, choices=5)
    for name, value in changes.items():
        setattr(settings, name, value)
    return evaluate_model(
        subject,
        sources=sources,
        encoder=encoder,
        config=settings,
        stage="align",
        step=3,
        model="runs/a",
        remote=remote,
    )


def test_a_source_behind_a_url(tiny_subject, sources, rule_encoder, tmp_path) -> None:
    names = sorted(shard.name for shard in Path(sources["prose"].path).glob("*.tar"))
    for name in names:
        data = (Path(sources["prose"].path) / name).read_bytes()
        fsspec.filesystem("memory").pipe_file(f"/prose/{name}", data)
    url = f"memory://prose/{{{','.join(names)}}}".replace(".tar", "") + ".tar"
    away = {"prose": replace(sources["prose"], path=url, index_dir=str(tmp_path / "index"))}
    remote = RemoteStore(RemoteConfig(schemes=["memory"], cache_dir=str(tmp_path / "cache")))
    prepare_sources(
        away,
        encoder_for=lambda source: rule_encoder,
        workers=0,
        faults=FaultConfig(),
        remote=remote,
    )
    found = run(tiny_subject, away, rule_encoder, remote=remote).held_out
    assert found == run(tiny_subject, {"prose": sources["prose"]}, rule_encoder).held_out
    with pytest.raises(ConfigError, match="only local shards can be read here"):
        run(tiny_subject, away, rule_encoder)


def test_every_source_is_asked_what_it_can_be_asked(tiny_subject, sources, rule_encoder):
    point = run(tiny_subject, sources, rule_encoder)
    assert set(point.held_out) == {"colors", "quiz", "prose"}
    assert set(point.choices) == {"colors"}
    assert set(point.questions) == {"quiz"}
    assert point.boxes == {"quiz": {}}
    # A model that has learned nothing is as good as guessing: ln(300) nats per token.
    assert point.held_out["prose"].loss == pytest.approx(5.7, abs=0.3)
    assert point.held_out["prose"].blank_loss is None
    assert point.held_out["colors"].blank_loss is not None
    assert point.held_out["colors"].records == 8
    assert point.choices["colors"].asked == 8
    assert point.choices["colors"].chance == pytest.approx(0.2)
    assert point.questions["quiz"]["what"].asked == 8
    assert len(point.samples["quiz"]) == 6


def test_row_losses_do_not_depend_on_padding(tiny_subject, sources, rule_encoder):
    samples, _ = read_samples(open_source("prose", sources["prose"]), limit=2)
    short = rule_encoder.piece(samples[0], start=0, tokens=9)
    long = rule_encoder.piece(samples[1], start=0, tokens=40)
    features = tiny_subject.features([short, long], [], blank=False)
    together = tiny_subject.losses([short, long], features=features)
    apart = [tiny_subject.losses([e], features=features)[0] for e in (short, long)]
    assert together == pytest.approx(apart, rel=1e-5)


def test_rows_are_shifted_and_padded(rule_encoder, make_caption):
    example = rule_encoder.encode(make_caption("1", "red", color="red"))
    other = rule_encoder.encode(make_caption("2", "a red thing, a green thing", color="red"))
    rows = make_rows([example, other])
    n = len(example.ids)
    assert rows.ids[0, :n].tolist() == example.ids.tolist()
    # First token and 4 placeholders predict nothing; the last placeholder predicts the caption.
    assert rows.targets[0, :4].tolist() == [-100] * 4
    assert rows.targets[0, 4 : n - 1].tolist() == example.ids[5:].tolist()
    assert rows.targets[0, n - 1 :].unique().tolist() == [-100]
    assert rows.segments[0].tolist() == [1] * n + [0] * (rows.ids.shape[1] - n)
    width = rows.ids.shape[1]
    assert rows.image_positions.tolist() == [1, 2, 3, 4, *range(width + 1, width + 5)]


def test_samples_are_spread_over_the_source(sources):
    samples, faults = read_samples(open_source("colors", sources["colors"]), limit=4)
    assert [s.origin.key for s in samples] == ["000", "003", "006", "009"]
    assert faults == 0
    assert all(s.images[0].data.startswith(b"\x89PNG") for s in samples)
    every, _ = read_samples(open_source("colors", sources["colors"]), limit=99)
    assert len(every) == 10


def test_a_source_of_the_other_modality_is_refused(sources):
    wrong = SourceConfig(
        path=sources["colors"].path, kind=RecordKind.caption, modality=Modality.language
    )
    with pytest.raises(DataError, match=r"data\.held_out\.x: none of 2 records is a usable"):
        read_samples(open_source("x", wrong), limit=2)


def test_nothing_to_evaluate_on_is_an_error(tiny_subject, rule_encoder):
    with pytest.raises(ConfigError, match=r"data\.held_out is empty"):
        run(tiny_subject, {}, rule_encoder)
