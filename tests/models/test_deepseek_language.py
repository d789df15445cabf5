"""A DeepSeek language model's own published directory: what a stage 1 of DeepSeek-VL2 starts
from."""

from __future__ import annotations

import json

import pytest
import torch
from moe_samples import VARIANTS
from released_vl2 import language_shapes, released_tensors, small_language
from safetensors.torch import load_file, save_file
from test_moe_language import logits, some_ids
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
)

from vltrain.errors import WeightsError
from vltrain.models.build import build_model
from vltrain.models.export_part import export_part
from vltrain.models.weights import load_weights, tensor_digests

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
MODEL_TYPES = {"tiny": "deepseek", "small": "deepseek_v2", "base": "deepseek_v3"}


@pytest.fixture
def config(request, small_vl2):
    return small_vl2(request.param, init_std=0.2)


def fresh(config):
    return build_model(
        config,
        trainable=["adaptor"],
        freeze=[],
        dtype=torch.float32,
        frozen_dtype=torch.float32,
        device="cpu",
        seed=5,
    )


def stock_of(model_type):
    """Random weights that differ everywhere, corrections too."""
    if model_type == "deepseek_v2":
        stock = DeepseekV2ForCausalLM(DeepseekV2Config(**SIZES))
    else:
        routing = {"n_group": 1, "topk_group": 1, "norm_topk_prob": True}
        record = DeepseekV3Config(**SIZES, **routing, routed_scaling_factor=2.0)
        stock = DeepseekV3ForCausalLM(record)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in stock.state_dict().items():
            draw = 0.2 * torch.randn(tensor.shape, generator=generator)
            tensor.copy_(1 + draw if name.endswith("norm.weight") else draw)
    return stock.eval()


@pytest.mark.parametrize(
    ("config", "model_type"),
    [("small", "deepseek_v2"), ("base", "deepseek_v3")],
    indirect=["config"],
)
@pytest.mark.parametrize("shard_size", ["100KB", "1GB"])
def test_a_checkpoint_of_transformers_gives_its_logits(config, tmp_path, model_type, shard_size):
    stock = stock_of(model_type)
    stock.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) == 1) is (shard_size == "1GB")
    built = fresh(config)
    load_weights(built, directories={"language": tmp_path})
    ids = some_ids(2, 19)
    with torch.no_grad():
        expected = stock(input_ids=ids, use_cache=False).logits
        found = logits(built.module.language, ids)
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "model_type"),
    [("small", "deepseek_v3"), ("base", "deepseek_v2")],
    indirect=["config"],
)
def test_another_routing_is_refused(config, tmp_path, model_type):
    stock_of(model_type).save_pretrained(tmp_path)
    with pytest.raises(WeightsError) as error:
        load_weights(fresh(config), directories={"language": tmp_path})
    message = str(error.value)
    assert "config.json: scoring_func of language is" in message
    assert "config.json: routed_scaling_factor of language is" in message
    kind = "missing" if model_type == "deepseek_v2" else "unexpected"
    assert f"{kind} language.model.layers.1.mlp.gate.e_score_correction_bias (8,)" in message


@pytest.mark.parametrize("config", ["tiny"], indirect=True)
def test_a_partial_config_of_deepseekmoe_has_plain_attention(config, tmp_path):
    tensors = released_tensors(language_shapes(small_language("tiny")))
    save_file(tensors, tmp_path / "model.safetensors")
    settings = {
        "model_type": "deepseek",
        "num_attention_heads": 2,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    built = fresh(config)
    load_weights(built, directories={"language": tmp_path})
    name = "model.layers.0.self_attn.k_proj.weight"
    assert torch.equal(built.part_state("language")[f"language.{name}"], tensors[name].float())


@pytest.mark.parametrize("config", VARIANTS, indirect=True)
def test_the_part_as_a_directory_is_read_again_and_by_transformers(
    config, build, tmp_path, request
):
    built = build(config)
    corrections = dict(built.named_tensors()).keys() - dict(built.named_parameters()).keys()
    for name in corrections:
        built.fill(name, torch.linspace(-1, 1, 8))
    state = built.part_state("language")
    assert corrections <= state.keys()
    export_part(tmp_path, config=config, part="language", state=state)
    variant = request.node.callspec.params["config"]
    stored = load_file(tmp_path / "model.safetensors")
    assert {n: tuple(t.shape) for n, t in stored.items()} == language_shapes(
        small_language(variant)
    )
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == MODEL_TYPES[variant]
    again = fresh(config)
    load_weights(again, directories={"language": tmp_path})
    assert tensor_digests(again.part_state("language").items()) == tensor_digests(state.items())
    if variant == "tiny":
        return  # transformers has no class for plain attention with experts
    stock = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = some_ids(1, 13)
    with torch.no_grad():
        expected = stock(input_ids=ids, use_cache=False).logits
        found = logits(built.module.language, ids)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
