from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from vltrain.errors import ConfigError
from vltrain.processing.place_image_token import place_image_token
from vltrain.processing.train_tokenizer import IMAGE_TOKEN


def test_only_tokens_are_added_and_they_are_contiguous(deepseek_directory):
    document = json.loads((deepseek_directory / "tokenizer.json").read_text(encoding="utf-8"))
    added = document["added_tokens"]
    assert [token["id"] for token in added] == list(range(100000, 100016))
    assert added[-1]["content"] == IMAGE_TOKEN
    assert len(document["model"]["vocab"]) == 100000


def test_transformers_gives_it_the_same_id(deepseek_directory):
    theirs = AutoTokenizer.from_pretrained(deepseek_directory)
    assert theirs.convert_tokens_to_ids(IMAGE_TOKEN) == 100015
    assert theirs.encode(f"{IMAGE_TOKEN}", add_special_tokens=False) == [100015]


def test_taken_ids_and_names_are_refused(deepseek_directory, tmp_path):
    with pytest.raises(ConfigError, match=r"id 100001 is taken .*first free id is 100016"):
        place_image_token(
            deepseek_directory, image_token="<i>", image_token_id=100001, directory=tmp_path
        )
    with pytest.raises(ConfigError, match="already has '<image_placeholder>', with id 100015"):
        place_image_token(
            deepseek_directory, image_token=IMAGE_TOKEN, image_token_id=200000, directory=tmp_path
        )
