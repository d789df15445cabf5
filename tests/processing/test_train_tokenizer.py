from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from vltrain.errors import ConfigError
from vltrain.processing.train_tokenizer import IMAGE_TOKEN, SPECIAL_TOKENS, train_bpe


def test_transformers_reads_the_directory(tokenizer, tokenizer_directory):
    theirs = AutoTokenizer.from_pretrained(tokenizer_directory)
    assert theirs.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2)
    assert theirs.image_token == IMAGE_TOKEN
    text = "What is in the picture? 42"
    assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
    assert theirs.decode(tokenizer.encode(text)) == text


def test_the_same_texts_give_the_same_files(tmp_path):
    for name in ("a", "b"):
        train_bpe(["one two three"] * 3, vocab_size=270, directory=tmp_path / name)
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (
        tmp_path / "b/tokenizer.json"
    ).read_bytes()


def test_too_small_a_vocabulary(tmp_path):
    with pytest.raises(ConfigError, match="vocab_size 100 is below 260"):
        train_bpe(["x"], vocab_size=100, directory=tmp_path)
