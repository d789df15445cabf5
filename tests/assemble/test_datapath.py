"""What is refused before any data is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from vltrain.assemble.datapath import open_tokenizer, sources_to_prepare
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


def test_a_source_named_as_a_held_out_one_is_in_reports(compose) -> None:
    config = compose("stage=1", "+experiment=demo")
    source = next(iter(config.data.sources.values()))
    config.data.held_out = {"x": source}
    assert sources_to_prepare(config) == {**config.data.sources, "held_out_x": source}
    config.data.sources["held_out_x"] = source
    with pytest.raises(
        ConfigError, match=r"sources\.held_out_x has the name that data\.held_out\.x"
    ):
        sources_to_prepare(config)
