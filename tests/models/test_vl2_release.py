"""The layout of DeepSeek-VL2's release: read, held against the config, and written back."""

from __future__ import annotations

import json
import weakref

import pytest
import torch
from released_layout import random_tensors, write_released
from released_vl2 import (
    CORRECTION,
    FULL,
    ROUTING,
    SMALL_SIGLIP,
    SO400M,
    released_tensors,
    small_config_json,
    small_language,
    vl2_config_json,
    vl2_shapes,
)
from safetensors.torch import load_file, save_file

from vltrain.errors import WeightsError
from vltrain.models import published_directory
from vltrain.models.build import build_model
from vltrain.models.config import Activation
from vltrain.models.export import ExportFormat, StateSource, export_model, plan_export
from vltrain.models.layouts import is_unused
from vltrain.models.published_directory import PublishedDirectory
from vltrain.models.published_settings import setting_differences
from vltrain.models.tensor_files import open_tensors
from vltrain.models.trainable import parts_of
from vltrain.models.weights import load_weights

PARAMETERS = {"tiny": 3_355_263_088, "small": 16_133_111_152, "base": 27_464_893_808}
EXPERT = "language.model.layers.2.mlp.experts."


@pytest.fixture
def released(tmp_path):
    """``released("base")``: a directory and its tensors."""

    def write(variant, *, kind="safetensors", shards=1, changed=None):
        tensors = released_tensors(vl2_shapes(SMALL_SIGLIP, small_language(variant)))
        tensors |= changed or {}
        directory = tmp_path / "released"
        settings = small_config_json(variant)
        write_released(directory, tensors, config=settings, kind=kind, shards=shards)
        return directory, tensors

    return write


def fresh(config):
    return build_model(
        config,
        trainable=["adaptor"],
        freeze=[],
        dtype=torch.float32,
        frozen_dtype=torch.float32,
        device="cpu",
        seed=3,
    )


def loaded(config, directory):
    built = fresh(config)
    load_weights(built, directories=dict.fromkeys(parts_of(config), directory))
    return built


def written(directory):
    tensors = {}
    for file in directory.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


@pytest.mark.parametrize("variant", FULL)
def test_the_full_sizes_have_the_released_key_set(config_of, variant):
    config = config_of(f"deepseek_vl2_{variant}")
    plan = plan_export(ExportFormat.deepseek_vl2, config=config, kept={})
    assert plan.shapes == vl2_shapes(SO400M, FULL[variant])
    sizes = {name: torch.Size(shape).numel() for name, shape in plan.shapes.items()}
    corrections = sum(size for name, size in sizes.items() if name.endswith(CORRECTION))
    assert corrections == (29 * 72 if variant == "base" else 0)
    unused = sum(torch.Size(shape).numel() for shape in plan.unused.values())
    assert sum(sizes.values()) - corrections - unused == PARAMETERS[variant]


@pytest.mark.parametrize("variant", FULL)
@pytest.mark.parametrize(("kind", "shards"), [("safetensors", 1), ("safetensors", 3), ("bin", 2)])
def test_original_to_ours_to_original_bit_for_bit(
    small_vl2, released, tmp_path, export_tokens, variant, kind, shards
):
    directory, tensors = released(variant, kind=kind, shards=shards)
    config = small_vl2(variant)
    built = loaded(config, directory)
    unused = dict(PublishedDirectory(directory, config=config).tensors(is_unused))
    made = export_model(
        tmp_path / "out",
        kind=ExportFormat.deepseek_vl2,
        config=config,
        source=StateSource(dict(built.named_tensors()) | unused),
        tokens=export_tokens,
        dtype=torch.bfloat16,
        shard_bytes=100_000,
    )
    assert made == ()
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    found = written(tmp_path / "out")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    again = json.loads((tmp_path / "out" / "config.json").read_text())
    for part in parts_of(config):
        assert setting_differences(again, part=part, config=config) == []


def test_where_the_tensors_go(small_vl2, released):
    directory, tensors = released("base")
    state = dict(loaded(small_vl2("base"), directory).named_tensors())
    stack = state["language.model.layers.2.mlp.experts.gate_up_proj"]
    assert stack.shape == (8, 64, 32)
    assert torch.equal(stack[5, :32], tensors[EXPERT + "5.gate_proj.weight"].float())
    assert torch.equal(stack[5, 32:], tensors[EXPERT + "5.up_proj.weight"].float())
    down = state["language.model.layers.2.mlp.experts.down_proj"]
    assert torch.equal(down[7], tensors[EXPERT + "7.down_proj.weight"].float())
    correction = f"language.model.layers.2.mlp.gate.{CORRECTION}"
    assert torch.equal(state[correction], tensors[correction])
    for ours, theirs in (
        ("adaptor.linear1.weight", "projector.layers.0.weight"),
        ("adaptor.linear2.bias", "projector.layers.2.bias"),
        ("adaptor.image_newline", "image_newline"),
        ("adaptor.view_separator", "view_seperator"),
        ("siglip.embeddings.patch_embedding.weight", "vision.patch_embed.proj.weight"),
        ("language.model.layers.0.mlp.up_proj.weight", "language.model.layers.0.mlp.up_proj."),
    ):
        stored = tensors.get(theirs, tensors.get(theirs + "weight"))
        assert torch.equal(state[ours], stored.float()), ours
    fused = tensors["vision.blocks.1.attn.qkv.weight"].float()
    assert torch.equal(state["siglip.encoder.layers.1.self_attn.k_proj.weight"], fused[32:64])


@pytest.mark.parametrize("variant", FULL)
def test_the_released_configs_are_those_of_the_full_sizes(config_of, variant):
    """Restated with what the released files leave out: Base says neither layers nor heads."""
    heads = {"tiny": 10, "small": 16, "base": None}[variant]
    language = {"num_experts_per_tok": 6, **ROUTING[variant]}
    if heads is not None:
        language["num_attention_heads"] = heads
    settings = vl2_config_json(language)
    config = config_of(f"deepseek_vl2_{variant}")
    for part in ("siglip", "adaptor", "language"):
        assert setting_differences(settings, part=part, config=config) == []


def test_a_model_that_would_compute_something_else_is_told_apart(small_vl2):
    config = small_vl2("base")
    settings = small_config_json("small")
    settings["language_config"] |= {
        "num_attention_heads": 4,
        "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
        "use_mla": False,
    }
    del settings["language_config"]["q_lora_rank"]
    assert setting_differences(settings, part="language", config=config) == [
        "config.json: num_attention_heads of language is 4, model.language.heads is 2",
        "config.json: use_mla of language is False, model.language.mla is set",
        "config.json: q_lora_rank of language is 1536, expected None",
        "config.json: scoring_func of language is softmax, model.language.moe.scoring is sigmoid",
        "config.json: topk_method of language is greedy, model.language.moe.selection is noaux_tc",
        "config.json: norm_topk_prob of language is False, model.language.moe.normalise_weights is "
        "True",
        "config.json: routed_scaling_factor of language is 1.0, model.language.moe.scale is 2.0",
        "config.json: the rotary embedding of language is of type 'yarn'; only the default one is "
        "trained here",
    ]
    told = {"n_group": 8, "hidden_act": "gelu"}
    settings["language_config"] = {**small_config_json("base")["language_config"], **told}
    assert setting_differences(settings, part="language", config=config) == [
        "config.json: n_group of language is 8, expected 1",
        "config.json: hidden_act of language is gelu, expected silu",
    ]
    settings["language_config"] = ["moe"]
    (said,) = setting_differences(settings, part="language", config=config)
    assert "the settings of language are not understood" in said


def test_another_model_of_the_same_type_is_told_apart(small_vl2):
    """DeepSeek-OCR calls itself deepseek_vl_v2 too."""
    settings = small_config_json("tiny")
    settings["projector_config"] |= {"projector_type": "linear", "input_dim": 2048}
    settings["tile_tag"] = "1D"
    settings["vision_config"]["heads"] = 12
    config = small_vl2("tiny")
    config.siglip.activation = Activation.gelu
    assert setting_differences(settings, part="adaptor", config=config) == [
        "config.json: projector_type is 'linear', expected 'downsample_mlp_gelu'",
        "config.json: tile_tag is '1D', expected '2D'",
    ]
    assert setting_differences(settings, part="siglip", config=config) == [
        "config.json: heads of siglip is 12, model.siglip.heads is 2",
        "a DeepSeek-VL2's SigLIP computes with gelu_tanh, model.siglip.activation is gelu",
    ]


def test_a_language_model_with_experts_does_not_fit_one_without(config_of):
    settings = {"model_type": "deepseek_v2", "num_attention_heads": 2}
    assert setting_differences(settings, part="language", config=config_of("tiny")) == [
        "config.json: language is a deepseek_v2 with experts, model.language.moe is not set"
    ]


def test_routing_in_one_group_is_greedy(small_vl2):
    settings = {
        **small_config_json("small")["language_config"],
        "model_type": "deepseek_v2",
        "topk_method": "group_limited_greedy",
    }
    config = small_vl2("small")
    assert setting_differences(settings, part="language", config=config) == []
    settings["n_group"] = 4
    assert setting_differences(settings, part="language", config=config) == [
        "config.json: topk_method of language is group_limited_greedy, "
        "model.language.moe.selection is greedy",
        "config.json: n_group of language is 4, expected 1",
    ]


def test_every_misfit_is_in_one_message(small_vl2, tmp_path):
    shapes = vl2_shapes(SMALL_SIGLIP, small_language("base"))
    del shapes["view_seperator"]
    del shapes[EXPERT + "3.up_proj.weight"]
    del shapes[f"language.model.layers.1.mlp.gate.{CORRECTION}"]
    shapes[EXPERT + "4.down_proj.weight"] = (32, 30)
    shapes["language.lm_head.weight"] = (500, 32)
    shapes["language.model.layers.9.mlp.experts.0.down_proj.weight"] = (32, 32)
    shapes["language.extra"] = (3,)
    shapes["tile_indicators"] = (24, 32)
    for k in range(8):
        del shapes[f"language.model.layers.1.mlp.experts.{k}.down_proj.weight"]
        shapes[f"language.model.layers.1.mlp.experts.{k}.down_proj.weight"] = (32, 16)
    settings = small_config_json("base")
    settings["language_config"]["num_experts_per_tok"] = 6
    tensors = random_tensors(shapes, dtype=torch.float32)
    write_released(tmp_path, tensors, config=settings, kind="bin", shards=2)
    with pytest.raises(WeightsError) as error:
        loaded(small_vl2("base"), tmp_path)
    message = str(error.value)
    assert f"{tmp_path} does not fit parts 'siglip', 'adaptor', 'language' of" in message
    for line in (
        "num_experts_per_tok of language is 6, model.language.moe.per_token is 2",
        "missing adaptor.view_separator (32,)",
        f"missing language.model.layers.1.mlp.gate.{CORRECTION} (8,)",
        f"missing {EXPERT}3.up_proj.weight (32, 32)",
        f"mis-shaped {EXPERT}4.down_proj.weight: found (32, 30), expected (32, 32)",
        "mis-shaped language.lm_head.weight: found (500, 32), expected (512, 32)",
        "mis-shaped language.model.layers.1.mlp.experts.down_proj: found (8, 32, 16), expected "
        "(8, 32, 32)",
        "unexpected language.model.layers.9.mlp.experts.down_proj (1, 32, 32)",
        "unexpected language.extra (3,)",
        "unexpected tile_indicators (24, 32) (no tensor of a 'deepseek_vl_v2')",
    ):
        assert line in message, line


def test_experts_of_which_some_are_missing_are_not_given_out(small_vl2, released):
    directory, tensors = released("small", changed={})
    del tensors[EXPERT + "6.gate_proj.weight"]
    save_file(tensors, directory / "model.safetensors")
    published = PublishedDirectory(directory, config=small_vl2("small"))
    name = EXPERT + "gate_up_proj"
    said = rf"does not hold {name} whole: missing {EXPERT}6\.gate_proj\.weight \(32, 32\)"
    with pytest.raises(WeightsError, match=said):
        published.tensor(name)


def test_a_correction_that_the_model_has_not_is_unexpected(small_vl2, released):
    directory, _ = released("base")
    with pytest.raises(WeightsError, match=rf"unexpected .*layers\.1\.mlp\.gate\.{CORRECTION} \(8"):
        loaded(small_vl2("small"), directory)


def test_experts_twice_over_are_not_taken_twice(small_vl2, released):
    """Stacked by whoever saved a state in memory, and one by one."""
    stacked = {EXPERT + "down_proj": torch.zeros(8, 32, 32)}
    directory, _ = released("small", changed=stacked)
    published = PublishedDirectory(directory, config=small_vl2("small"))
    assert published.unknown.keys() == {f"{EXPERT}{k}.down_proj.weight" for k in range(8)}
    (directory / "second.safetensors").write_bytes((directory / "model.safetensors").read_bytes())
    repeated = PublishedDirectory(directory, config=small_vl2("small")).unknown
    assert EXPERT + "0.gate_proj.weight" in repeated


def test_experts_of_two_types_lose_nothing(small_vl2, released):
    exact = torch.full((32, 32), 1 + 2**-20)
    directory, tensors = released("small", changed={EXPERT + "3.down_proj.weight": exact})
    stack = PublishedDirectory(directory, config=small_vl2("small")).tensor(EXPERT + "down_proj")
    assert torch.equal(stack[3], exact)
    assert torch.equal(stack[2], tensors[EXPERT + "2.down_proj.weight"].float())


def test_numbers_of_shards_may_have_six_digits(small_vl2, released):
    directory, _ = released("small")
    (directory / "model.safetensors").rename(directory / "model-00001-of-000002.safetensors")
    with pytest.raises(WeightsError, match=r"lacks model-00002-of-000002\.safetensors"):
        PublishedDirectory(directory, config=small_vl2("small"))


@pytest.mark.parametrize("shards", [1, 3])
def test_loading_holds_a_layers_experts_and_one_stored_tensor(
    small_vl2, released, monkeypatch, shards
):
    """Counted over the tensors that the files hand out: the stack comes on top."""
    alive, peak = [0], [0]

    def counted(path):
        opened = open_tensors(path)
        read = opened.tensor

        def tensor(name):
            found = read(name).clone()
            size = found.nbytes
            alive[0] += size
            peak[0] = max(peak[0], alive[0])

            def gone():
                alive[0] -= size

            weakref.finalize(found, gone)
            return found

        opened.tensor = tensor
        return opened

    directory, tensors = released("small", shards=shards)
    monkeypatch.setattr(published_directory, "open_tensors", counted)
    loaded(small_vl2("small"), directory)
    used = {n: t.nbytes for n, t in tensors.items() if not n.startswith("vision.attn_pool")}
    assert peak[0] == max(used.values())
