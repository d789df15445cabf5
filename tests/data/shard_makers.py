"""Small shards, images and an encoder whose lengths can be counted by hand (one token per
byte)."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from PIL import Image

from vltrain.batch import Learn, Modality, RecordKind
from vltrain.data.config import FaultConfig, SourceConfig
from vltrain.data.prepare import prepare_sources
from vltrain.data.report import PrepareReport
from vltrain.processing.encode import Encoder, EncodeRules
from vltrain.processing.geometry import FixedGeometry
from vltrain.processing.tokens import TextTokenizer
from vltrain.processing.train_tokenizer import IMAGE_TOKEN, IMAGE_TOKEN_ID, train_bpe

IMAGE_TOKENS = 4
Members = Iterable[tuple[str, bytes]]


def png(width: int = 6, height: int = 4, *, color: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), color).save(stream, format="PNG")
    return stream.getvalue()


def write_tar(path: Path, members: Members, *, format: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar as any other tool writes it: members in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@cache
def byte_tokenizer() -> TextTokenizer:
    """260 tokens: four special ones and every byte; no merges."""
    directory = train_bpe(["a"], vocab_size=260, directory=mkdtemp())
    return TextTokenizer.load(directory, image_token=IMAGE_TOKEN, image_token_id=IMAGE_TOKEN_ID)


def byte_encoder(*, sequence_length: int = 64, max_images: int = 2) -> Encoder:
    """Length of a document: 1 + bytes + 4 per image + 1."""
    rules = EncodeRules(learn=Learn.all, sequence_length=sequence_length, max_images=max_images)
    return Encoder(byte_tokenizer(), FixedGeometry(tokens_per_image=IMAGE_TOKENS), rules)


def source_config(
    path: Path,
    *,
    kind: RecordKind = RecordKind.caption,
    modality: Modality = Modality.multimodal,
    index_dir: str | None = None,
) -> SourceConfig:
    return SourceConfig(path=str(path), kind=kind, modality=modality, index_dir=index_dir)


def prepare(
    sources: dict[str, SourceConfig],
    *,
    encoder: Encoder | None = None,
    workers: int = 0,
    grace: int = 16,
) -> PrepareReport:
    chosen = encoder or byte_encoder()
    return prepare_sources(
        sources,
        encoder_for=lambda config: chosen,
        workers=workers,
        faults=FaultConfig(budget=0.001, grace=grace),
    )
