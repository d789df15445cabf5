"""What is counted is what is built: linear weights that a token meets, of the real modules."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from model_yaml import model_config

from vltrain.assemble.shapes import model_shape
from vltrain.metrics.throughput import Work, count_flops
from vltrain.models.language import LanguageModel
from vltrain.models.moe_language import MoeLanguageModel


@pytest.mark.parametrize(
    "name", ["tiny", "deepseek_vl_7b", "tiny_vl2", "deepseek_vl2_tiny", "deepseek_vl2_small"]
)
def test_linear_weights_that_a_token_meets(name: str) -> None:
    config = model_config(name)
    moe = config.language.moe
    with torch.device("meta"):
        language = LanguageModel(config) if moe is None else MoeLanguageModel(config)
    met = 0.0
    ends = 0
    for path, parameter in language.named_parameters():
        if "embed" in path or "head" in path:
            ends += parameter.numel()
        elif ".experts." in path:
            assert moe is not None
            met += parameter.numel() * moe.per_token / moe.experts
        elif parameter.dim() >= 2:
            met += parameter.numel()
    shape = model_shape(config).language
    assert shape.block_parameters == met
    assert 2 * shape.head_parameters == ends  # embedding and head


def test_what_is_computed_again_does_not_count() -> None:
    config = model_config("tiny")
    work = Work(squares=2, tokens=64, targets=9, sum_squared_document_tokens=2048)
    parts = ("sam", "siglip", "language")
    again = dataclasses.replace(
        config.activation_checkpointing,
        **{part: type(getattr(config.activation_checkpointing, part))("full") for part in parts},
    )
    assert again != config.activation_checkpointing
    once, twice = (
        count_flops(model_shape(c), trained=["adaptor", "language"], work=work).total
        for c in (config, dataclasses.replace(config, activation_checkpointing=again))
    )
    assert once == twice
