"""What is refused before any data is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from vltrain.assemble.datapath import open_tokenizer
from vltrain.errors import ConfigError
from vltrain.processing.train_tokenizer import train_bpe


def test_a_tokenizer_larger_than_the_embedding(compose, tmp_path: Path) -> None:
    train_bpe(["one two three four five six"] * 9, vocab_size=280, directory=tmp_path)
    words = ("stage=1", "+experiment=demo", "model=tiny", f"model.tokenizer={tmp_path}")
    assert open_tokenizer(compose(*words)).vocab_size <= 280
    with pytest.raises(
        ConfigError, match=r"has ids up to \d+, and model\.language\.vocab_size=264"
    ):
        open_tokenizer(compose(*words, "model.language.vocab_size=264"))
