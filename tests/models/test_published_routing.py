"""Options of a DeepSeek language model's config.json that transformers' own classes store and
ignore: each is computed as it says, or refused by name; what concerns training alone is told."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from moe_samples import small_model
from released_layout import write_released
from released_vl2 import (
    SMALL_SIGLIP,
    released_tensors,
    small_config_json,
    small_language,
    vl2_shapes,
)
from test_moe_language import logits, some_ids

from vltrain.models.build import build_model
from vltrain.models.moe_config import Scoring, Selection
from vltrain.models.published_settings import setting_differences
from vltrain.models.trainable import parts_of
from vltrain.models.weights import load_weights

YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}
OTHERWISE: dict[str, tuple[Any, str]] = {
    "norm_topk_prob": (False, "is False, model.language.moe.normalise_weights is True"),
    "use_mla": (False, "is False, model.language.mla is set"),
    "scoring_func": ("softmax", "is softmax, model.language.moe.scoring is sigmoid"),
    "topk_method": ("greedy", "is greedy, model.language.moe.selection is noaux_tc"),
    "routed_scaling_factor": (1.0, "is 1.0, model.language.moe.scale is 2.0"),
    "num_experts_per_tok": (6, "is 6, model.language.moe.per_token is 2"),
    "first_k_dense_replace": (2, "is 2, model.language.moe.dense_layers is 1"),
    "num_attention_heads": (4, "is 4, model.language.heads is 2"),
    "rms_norm_eps": (1e-5, "is 1e-05, model.language.norm_eps is 1e-06"),
    "n_group": (4, "is 4, expected 1"),
    "topk_group": (2, "is 2, expected 1"),
    "moe_layer_freq": (2, "is 2, expected 1"),
    "q_lora_rank": (1536, "is 1536, expected None"),
    "hidden_act": ("gelu", "is gelu, expected silu"),
}
"""Key -> another value than Base's, and what is said of it."""
DEFAULTS = {
    "norm_topk_prob": "is False, ",
    "scoring_func": "is softmax, ",
    "topk_method": "is greedy, ",
    "routed_scaling_factor": "is 1.0, ",
    "num_experts_per_tok": "is None, ",
    "first_k_dense_replace": "is 0, ",
    "num_attention_heads": "is 32, ",
    "q_lora_rank": "is 1536, ",
}
"""Left out, these have the value of the released class, which is not Base's."""


def language_of(variant: str, **said: Any) -> dict[str, Any]:
    settings = small_config_json(variant)
    settings["language_config"] |= said
    return settings


@pytest.mark.parametrize(("key", "otherwise"), OTHERWISE.items(), ids=OTHERWISE)
def test_an_option_that_says_another_model_is_refused(small_vl2, key, otherwise):
    value, said = otherwise
    settings = language_of("base", **{key: value})
    assert setting_differences(settings, part="language", config=small_vl2("base")) == [
        f"config.json: {key} of language {said}"
    ]


@pytest.mark.parametrize(("key", "said"), DEFAULTS.items(), ids=DEFAULTS)
def test_an_option_that_is_left_out_has_the_released_default(small_vl2, key, said):
    settings = language_of("base")
    del settings["language_config"][key]
    (found,) = setting_differences(settings, part="language", config=small_vl2("base"))
    assert found.startswith(f"config.json: {key} of language {said}")


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"rope_scaling": YARN}, "yarn"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
    ],
)
def test_a_stretched_rotary_embedding_is_refused(small_vl2, said, kind):
    settings = language_of("base", **said)
    assert setting_differences(settings, part="language", config=small_vl2("base")) == [
        f"config.json: the rotary embedding of language is of type {kind!r}; only the default one "
        "is trained here"
    ]


def test_the_angle_of_the_rotary_embedding_is_compared(small_vl2):
    settings = language_of("base", rope_theta=500000.0)
    (said,) = setting_differences(settings, part="language", config=small_vl2("base"))
    assert said.endswith("rope_theta of language is 500000.0, model.language.rope_theta is 10000.0")


def test_a_deepseek_v3_has_its_own_defaults_and_order_of_rotary_pairs(small_vl2):
    said = {**language_of("base")["language_config"], "model_type": "deepseek_v3"}
    config = small_vl2("base")
    assert setting_differences(said, part="language", config=config) == []
    assert setting_differences(said | {"rope_interleave": False}, part="language", config=config)
    for key in ("topk_group", "n_group", "first_k_dense_replace"):
        del said[key]
    assert setting_differences(said, part="language", config=config) == [
        "config.json: n_group of language is 8, expected 1",
        "config.json: topk_group of language is 4, expected 1",
        "config.json: first_k_dense_replace of language is 3, model.language.moe.dense_layers is 1",
    ]


@pytest.mark.parametrize(
    ("key", "value", "fields"),
    [
        ("norm_topk_prob", False, {"normalise_weights": False}),
        ("scoring_func", "softmax", {"scoring": Scoring.softmax}),
        ("topk_method", "greedy", {"selection": Selection.greedy}),
        ("routed_scaling_factor", 1.0, {"scale": 1.0}),
        ("num_experts_per_tok", 3, {"per_token": 3}),
        ("first_k_dense_replace", 2, {"dense_layers": 2}),
    ],
)
def test_an_option_that_the_config_shares_is_computed(small_vl2, key, value, fields):
    """The same weights, and other logits."""
    whole = {"shared": 2, **{name: getattr(v, "value", v) for name, v in fields.items()}}
    config = small_vl2("base", moe=whole)
    settings = language_of("base", **{key: value})
    assert setting_differences(settings, part="language", config=config) == []
    released, changed = small_model("base"), small_model("base", **fields)
    for model in (released, changed):
        if model.balance.corrections is not None:
            model.balance.corrections[:, 0] = 5.0
    ids = some_ids(1, 9)
    with torch.no_grad():
        assert (logits(released, ids) - logits(changed, ids)).abs().max() > 1e-3


@pytest.fixture
def told(small_vl2, tmp_path: Path, caplog):
    """What is said when Base's weights are read, with ``said`` in its language_config, and
    ``trainable`` parts train."""

    def load(*, trainable: list[str], **said: Any) -> list[str]:
        config = small_vl2("base")
        config.router.penalty_weight = 0.0001
        tensors = released_tensors(vl2_shapes(SMALL_SIGLIP, small_language("base")))
        settings = language_of("base", **said)
        write_released(tmp_path, tensors, config=settings, kind="safetensors", shards=1)
        built = build_model(
            config,
            trainable=trainable,
            freeze=[],
            dtype=torch.float32,
            frozen_dtype=torch.float32,
            device="cpu",
            seed=0,
        )
        with caplog.at_level(logging.WARNING):
            load_weights(built, directories=dict.fromkeys(parts_of(config), tmp_path))
        said_of = f"{tmp_path}: config.json: "
        return [record.message.removeprefix(said_of) for record in caplog.records]

    return load


def test_another_balance_loss_is_told_where_the_language_model_trains(told):
    assert told(trainable=["adaptor", "language"], aux_loss_alpha=0.001, seq_aux=False) == [
        "aux_loss_alpha of language is 0.001; this run's is model.router.penalty_weight=0.0001",
        "seq_aux of language is False; this run's balance loss is by sequence",
    ]


@pytest.mark.parametrize(
    ("trainable", "said"),
    [
        (["adaptor"], {"aux_loss_alpha": 0.001, "seq_aux": False}),
        (["adaptor", "language"], {"aux_loss_alpha": 0.0001, "seq_aux": True}),
        (["adaptor", "language"], {}),
    ],
)
def test_nothing_is_told_of_the_same_balance_loss_or_of_a_frozen_language_model(
    told, trainable, said
):
    assert told(trainable=trainable, **said) == []
