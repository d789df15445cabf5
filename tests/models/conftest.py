"""Tiny real models, and packs to put through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from model_yaml import model_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from vltrain.batch import IGNORE
from vltrain.models.build import BuiltModel, build_model
from vltrain.models.config import ModelConfig
from vltrain.models.export_tokens import ExportTokens

IMAGE_ID = 3
ALL_PARTS = ("siglip", "adaptor", "language")


@dataclass(frozen=True, kw_only=True)
class Pack:
    """The arguments of the module, less the features, and the images they are made of."""

    ids: Tensor
    positions: Tensor
    segments: Tensor
    targets: Tensor
    image_positions: Tensor
    images: Tensor

    def run(self, built: BuiltModel) -> Tensor:
        """The loss sum."""
        return built.module(
            self.ids,
            self.positions,
            self.segments,
            self.targets,
            self.image_positions,
            built.frozen.encode(self.images),
        )

    def logits(self, built: BuiltModel) -> Tensor:
        """fp32 (B, T, vocabulary)."""
        features = built.frozen.encode(self.images)
        hidden = built.module.hidden(
            self.ids, self.positions, self.segments, self.image_positions, features
        )
        return built.module.language.lm_head(hidden)


@pytest.fixture
def config_of() -> Callable[..., ModelConfig]:
    """``config_of("tiny", {"sam": None})``: a YAML of conf/model with overrides."""

    def load(name: str, overrides: dict[str, Any] | None = None) -> ModelConfig:
        return model_config(name, overrides or {})

    return load


@pytest.fixture
def tiny(config_of: Callable[..., ModelConfig]) -> ModelConfig:
    return config_of("tiny")


@pytest.fixture
def small_vl2(config_of: Callable[..., ModelConfig]) -> Callable[..., ModelConfig]:
    """``small_vl2("base", init_std=0.2)``: tiny_vl2 with two shared experts and the attention and
    routing of a released variant; keywords are of its language model."""

    def make(variant: str, **fields: Any) -> ModelConfig:
        moe: dict[str, Any] = {"shared": 2}
        router: dict[str, float] = {}
        if variant != "base":
            moe |= {"scoring": "softmax", "selection": "greedy"}
            moe |= {"normalise_weights": False, "scale": 1.0}
            router = {"correction_step": 0.0}
        attention = {"mla": None} if variant == "tiny" else {}
        language = {"moe": moe, **attention, **fields}
        return config_of("tiny_vl2", {"language": language, "router": router})

    return make


@pytest.fixture
def siglip_only(config_of: Callable[..., ModelConfig]) -> ModelConfig:
    return config_of("tiny", {"name": "tiny_siglip", "sam": None, "adaptor": {"kind": "mlp"}})


@pytest.fixture
def build() -> Callable[..., BuiltModel]:
    """A built model whose every parameter is drawn anew: SAM's position tables and alpha start at
    zero, where mistakes would not show."""

    def make(
        config: ModelConfig, *, trainable: Sequence[str] = ALL_PARTS, freeze: Sequence[str] = ()
    ) -> BuiltModel:
        built = build_model(
            config,
            trainable=trainable,
            freeze=freeze,
            dtype=torch.float32,
            frozen_dtype=torch.float32,
            device="cpu",
            seed=0,
        )
        with torch.no_grad():
            for name, parameter in sorted(built.named_parameters()):
                generator = torch.Generator().manual_seed(sum(name.encode()))
                draw = torch.randn(parameter.shape, generator=generator)
                norm = "norm" in name and name.endswith("weight")
                parameter.copy_(1 + 0.1 * draw if norm else 0.1 * draw)
        return built

    return make


@pytest.fixture
def export_tokens(tokenizer_directory: Path) -> ExportTokens:
    """Of ``tokenizer_directory``."""
    return ExportTokens(
        directory=tokenizer_directory,
        bos_token="<bos>",
        bos_id=0,
        eos_token="<eos>",
        eos_id=1,
        image_token="<image_placeholder>",
        max_length=1024,
        system_prompt="",
    )


@pytest.fixture
def pack() -> Callable[..., Pack]:
    """``pack(config, [[(10, 1), (7, 0)], ...])``: rows of documents, each (text tokens, images);
    a document's images stand after its second token. Every text token but a document's first is a
    target.
    """

    def make(config: ModelConfig, rows: Sequence[Sequence[tuple[int, int]]], seed: int = 0) -> Pack:
        generator = torch.Generator().manual_seed(seed)
        per_image, side = config.tokens_per_image, config.image_side
        documents = [
            [_document(text, images, per_image, config, generator) for text, images in row]
            for row in rows
        ]
        length = max(sum(len(ids) for ids in row) for row in documents)
        length += -length % 8
        ids = torch.zeros(len(rows), length, dtype=torch.int64)
        positions, targets = torch.zeros_like(ids), torch.full_like(ids, IGNORE)
        segments = torch.zeros(len(rows), length, dtype=torch.int32)
        for b, row in enumerate(documents):
            start = 0
            for number, document in enumerate(row, start=1):
                end = start + len(document)
                ids[b, start:end] = document
                positions[b, start:end] = torch.arange(len(document))
                segments[b, start:end] = number
                shifted = document[1:].masked_fill(document[1:] == IMAGE_ID, IGNORE)
                targets[b, start : end - 1] = shifted
                start = end
        num_images = sum(images for row in rows for _, images in row)
        return Pack(
            ids=ids,
            positions=positions,
            segments=segments,
            targets=targets,
            image_positions=(ids == IMAGE_ID).flatten().nonzero().squeeze(1),
            images=torch.randint(
                0, 256, (num_images, side, side, 3), dtype=torch.uint8, generator=generator
            ),
        )

    return make


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE: bos 0, eos 1, pad 2, image 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<bos>", "<eos>", "<pad>", "<image_placeholder>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["User: what is it?\n\nAssistant: a cat"], trainer)
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def _document(
    text: int, images: int, per_image: int, config: ModelConfig, generator: torch.Generator
) -> Tensor:
    words = torch.randint(4, config.language.vocab_size, (text,), generator=generator)
    placeholders = torch.full((images * per_image,), IMAGE_ID)
    return torch.cat((words[:2], placeholders, words[2:]))
