from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from vltrain.errors import ConfigError
from vltrain.processing.place_tokens import place_tokens
from vltrain.processing.tokens import TextTokenizer
from vltrain.processing.train_tokenizer import (
    BOS_TOKEN,
    EOS_TOKEN,
    IMAGE_TOKEN,
    IMAGE_TOKEN_ID,
    PAD_TOKEN,
)


@pytest.fixture(scope="module")
def deepseek(deepseek_directory: Path) -> TextTokenizer:
    return TextTokenizer.load(deepseek_directory, image_token=IMAGE_TOKEN, image_token_id=100015)


def test_ids_of_the_special_tokens(tokenizer):
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.image_id) == (0, 1, 3)
    assert tokenizer.vocab_size == 350


@pytest.mark.parametrize("text", ["The fox.\n\nA 64 é 红 🦊 ", " leading", "", "tab\tand\r\nend"])
def test_round_trip(tokenizer, deepseek, text):
    for one in (tokenizer, deepseek):
        assert one.decode(one.encode(text)) == text


@pytest.mark.parametrize("word", [BOS_TOKEN, EOS_TOKEN, PAD_TOKEN, IMAGE_TOKEN])
def test_special_words_in_plain_text_stay_plain(tokenizer, deepseek, word):
    text = f"I typed {word} myself, {word}{word}"
    for one in (tokenizer, deepseek):
        ids = one.encode(text)
        assert not {one.bos_id, one.eos_id, one.image_id} & set(ids)
        assert one.decode(ids) == text
    assert 2 not in tokenizer.encode(PAD_TOKEN)


def test_a_token_that_its_file_does_not_call_special_stays_plain_too(tokenizer_directory, tmp_path):
    document = json.loads((tokenizer_directory / "tokenizer.json").read_text())
    for token in document["added_tokens"]:
        token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    config = (tokenizer_directory / "tokenizer_config.json").read_text()
    (tmp_path / "tokenizer_config.json").write_text(config)
    one = TextTokenizer.load(tmp_path, image_token=IMAGE_TOKEN, image_token_id=IMAGE_TOKEN_ID)
    assert not {0, 1, 3} & set(one.encode(f"a {IMAGE_TOKEN} b {EOS_TOKEN} c {BOS_TOKEN}"))


def test_digits_are_single(tokenizer, deepseek):
    for one in (tokenizer, deepseek):
        assert len(one.encode("1234567890")) == 10


def test_decode_can_leave_out_special_tokens(tokenizer):
    ids = [tokenizer.bos_id, *tokenizer.encode("fox"), tokenizer.image_id, tokenizer.eos_id]
    assert tokenizer.decode(ids, skip_special=True) == "fox"
    assert tokenizer.decode(ids) == f"{BOS_TOKEN}fox{IMAGE_TOKEN}{EOS_TOKEN}"


def test_a_copy_in_another_process_is_as_safe(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301
    assert copy.digest == tokenizer.digest
    assert IMAGE_TOKEN_ID not in copy.encode(IMAGE_TOKEN)


def test_published_ids(deepseek):
    assert (deepseek.bos_id, deepseek.eos_id, deepseek.image_id) == (100000, 100001, 100015)
    assert deepseek.vocab_size == 100016


def test_digest_changes_with_files_and_ids(tokenizer, deepseek, deepseek_directory, tmp_path):
    package = deepseek_directory
    other = place_tokens(package, ids={"<other>": 100016}, vocab_size=102400, directory=tmp_path)
    digests = {
        tokenizer.digest,
        deepseek.digest,
        TextTokenizer.load(other, image_token="<other>", image_token_id=100016).digest,
        TextTokenizer.load(other, image_token=IMAGE_TOKEN, image_token_id=100015).digest,
    }
    assert len(digests) == 4


def test_break_levels(tokenizer):
    after, resumes = tokenizer.break_levels
    (newline,) = tokenizer.encode("\n")
    stop = tokenizer.encode("dog.")[-1]
    assert after[newline] == 3
    assert after[stop] == 2
    assert after[tokenizer.encode("fox")[-1]] == 1
    ids = tokenizer.encode("é")
    assert [bool(resumes[i]) for i in ids] == [False, True]


def load(directory, image_token=IMAGE_TOKEN, image_token_id=IMAGE_TOKEN_ID):
    return TextTokenizer.load(directory, image_token=image_token, image_token_id=image_token_id)


def test_missing_files(tokenizer_directory, tmp_path):
    with pytest.raises(ConfigError, match=r"no tokenizer\.json in .*model\.tokenizer"):
        load(tmp_path)
    (tmp_path / "tokenizer.json").write_text((tokenizer_directory / "tokenizer.json").read_text())
    with pytest.raises(ConfigError, match=r"no tokenizer_config\.json"):
        load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="names no bos_token"):
        load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    with pytest.raises(ConfigError, match="names the token '<s>'"):
        load(tmp_path)


def test_a_file_that_is_not_json_is_named(tokenizer_directory, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((tokenizer_directory / name).read_text())
    pointer = "version https://git-lfs.github.com/spec/v1\n"
    (tmp_path / "tokenizer.json").write_text(pointer)
    with pytest.raises(ConfigError, match=r"tokenizer\.json is not JSON .* b'version https://git"):
        load(tmp_path)
    (tmp_path / "tokenizer.json").write_text((tokenizer_directory / "tokenizer.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": ')
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json is not JSON .*fetch it again"):
        load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"config\.json: expected a JSON object, found a list"):
        load(tmp_path)


def test_image_token_of_another_id_or_name(tokenizer_directory):
    with pytest.raises(ConfigError, match=r"has id 3 .*model\.image_token_id=3"):
        load(tokenizer_directory, image_token_id=100015)
    with pytest.raises(ConfigError, match=r"id 5 is .*launch/place_tokens.py"):
        load(tokenizer_directory, image_token="<img>", image_token_id=5)
