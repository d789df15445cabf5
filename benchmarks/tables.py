"""Prepared sources for the benchmarks of the reader: an encoder, and a source over some tars."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from photos import sentence

from vltrain.batch import Learn, Modality, RecordKind
from vltrain.data.config import FaultConfig, SourceConfig
from vltrain.data.pieces import PieceTable
from vltrain.data.prepare import prepare_sources
from vltrain.data.sources import Source, open_source
from vltrain.processing.encode import Encoder, EncodeRules
from vltrain.processing.geometry import FixedGeometry
from vltrain.processing.tokens import TextTokenizer
from vltrain.processing.train_tokenizer import IMAGE_TOKEN, IMAGE_TOKEN_ID, train_bpe

SEQUENCE_LENGTH = 4096
TOKENS_PER_IMAGE = 576


@cache
def encoder() -> Encoder:
    directory = train_bpe(
        (sentence(n, words=100) for n in range(200)), vocab_size=512, directory=mkdtemp()
    )
    tokenizer = TextTokenizer.load(
        directory, image_token=IMAGE_TOKEN, image_token_id=IMAGE_TOKEN_ID
    )
    rules = EncodeRules(learn=Learn.all, sequence_length=SEQUENCE_LENGTH, max_images=8)
    return Encoder(tokenizer, FixedGeometry(tokens_per_image=TOKENS_PER_IMAGE), rules)


def source_config(folder: Path, kind: RecordKind) -> SourceConfig:
    modality = Modality.language if kind is RecordKind.text else Modality.multimodal
    return SourceConfig(path=str(folder), kind=kind, modality=modality)


def prepare(folder: Path, kind: RecordKind) -> SourceConfig:
    """Index and token tables, made in this process."""
    config = source_config(folder, kind)
    prepare_sources(
        {folder.name: config},
        encoder_for=lambda _: encoder(),
        workers=0,
        faults=FaultConfig(),
    )
    return config


def prepared(folder: Path, kind: RecordKind) -> tuple[Source, PieceTable]:
    source = open_source(folder.name, prepare(folder, kind))
    return source, PieceTable(source, encoder_digest=encoder().digest)
