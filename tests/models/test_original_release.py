"""The layout of the original release: read, computed with, and written back."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from released_layout import (
    LLM_1_3B,
    LLM_7B,
    SAM_B,
    SIGLIP_L,
    TINY_LLM,
    TINY_SAM,
    TINY_SIGLIP,
    random_tensors,
    released_shapes,
    sam_shapes,
    tiny_config_json,
    write_released,
)
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, AutoTokenizer

from vltrain.errors import WeightsError
from vltrain.models.build import build_model
from vltrain.models.export import ExportFormat, StateSource, export_model, plan_export
from vltrain.models.layouts import is_unused
from vltrain.models.pixels import pixel_view
from vltrain.models.published_directory import PublishedDirectory
from vltrain.models.published_settings import setting_differences
from vltrain.models.trainable import parts_of
from vltrain.models.weights import load_weights

FULL = {
    "deepseek_vl_7b": (SAM_B, LLM_7B, 7_331_390_721),
    "deepseek_vl_1.3b": (None, LLM_1_3B, 1_962_640_384),
}


def _fresh(config, *, dtype=torch.float32, trainable=("adaptor",)):
    return build_model(
        config,
        trainable=trainable,
        freeze=[],
        dtype=dtype,
        frozen_dtype=dtype,
        device="cpu",
        seed=3,
    )


def _load(config, directory):
    built = _fresh(config)
    load_weights(built, directories=dict.fromkeys(parts_of(config), directory))
    return built


def _stored(directory):
    tensors = {}
    for file in directory.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def _is_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.fixture(params=["hybrid", "siglip_only", "own_neck"])
def kind(request, config_of, tiny, siglip_only):
    """(our config, the restated shapes, config.json)"""
    hybrid = request.param != "siglip_only"
    config = {
        "hybrid": tiny,
        "siglip_only": siglip_only,
        "own_neck": config_of("tiny", {"adaptor": {"train_sam_neck": True}}),
    }[request.param]
    shapes = released_shapes(TINY_SAM if hybrid else None, TINY_SIGLIP, TINY_LLM)
    return config, shapes, tiny_config_json(hybrid=hybrid)


@pytest.mark.parametrize("name", FULL)
def test_the_full_sizes_have_the_released_key_set(config_of, name):
    sam, language, parameters = FULL[name]
    plan = plan_export(ExportFormat.deepseek_vl, config=config_of(name), kept={})
    assert plan.shapes == released_shapes(sam, SIGLIP_L, language)
    if sam is not None:
        tower = "vision_model.vision_tower_high.vision_tower."
        assert sum(name.startswith(tower) for name in plan.shapes) == 186
    total = sum(torch.Size(shape).numel() for shape in plan.shapes.values())
    unused = sum(torch.Size(shape).numel() for shape in plan.unused.values())
    assert total - unused == parameters


@pytest.mark.parametrize(("stored", "shards"), [("safetensors", 1), ("safetensors", 3), ("bin", 2)])
def test_original_to_ours_to_original_bit_for_bit(kind, tmp_path, export_tokens, stored, shards):
    config, shapes, settings = kind
    tensors = random_tensors(shapes, dtype=torch.bfloat16)
    source = tmp_path / "source"
    write_released(source, tensors, config=settings, kind=stored, shards=shards)
    built = _load(config, source)
    published = PublishedDirectory(source, config=config)
    state = dict(built.named_parameters()) | dict(published.tensors(is_unused))
    made = export_model(
        tmp_path / "out",
        kind=ExportFormat.deepseek_vl,
        config=config,
        source=StateSource(state),
        tokens=export_tokens,
        dtype=torch.bfloat16,
        shard_bytes=100_000,
    )
    assert made == ()
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    _is_same(_stored(tmp_path / "out"), tensors)


def test_original_to_transformers_to_original(kind, tmp_path, export_tokens):
    """Through the other layout, straight from directory to directory. It has no place for the two
    norms after the towers; everything else comes back."""
    config, shapes, settings = kind
    tensors = random_tensors(shapes, dtype=torch.float32)
    write_released(tmp_path / "a", tensors, config=settings, kind="safetensors", shards=2)
    made = ()
    for source, target, form in (
        ("a", "b", ExportFormat.transformers),
        ("b", "c", ExportFormat.deepseek_vl),
    ):
        made = export_model(
            tmp_path / target,
            kind=form,
            config=config,
            source=PublishedDirectory(tmp_path / source, config=config),
            tokens=export_tokens,
            dtype=torch.float32,
            shard_bytes=10**9,
        )
    norms = {name for name in tensors if "_layer_norm." in name}
    assert len(made) == len(norms)
    found = _stored(tmp_path / "c")
    _is_same(
        {n: t for n, t in found.items() if n not in norms},
        {name: tensor for name, tensor in tensors.items() if name not in norms},
    )
    for name in norms:
        assert found[name].unique().tolist() == [1.0 if name.endswith("weight") else 0.0]
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "b")
    query = stock.model.vision_model.encoder.layers[1].self_attn.q_proj.weight
    tower = "vision_tower_low.vision_tower" if config.sam is not None else "vision_tower"
    fused = tensors[f"vision_model.{tower}.blocks.1.attn.qkv.weight"]
    assert torch.equal(query, fused[: len(query)])


def test_the_released_forward_pass_gives_our_visual_tokens(siglip_only, tmp_path):
    """SigLIP and aligner written out from the description, in the released names."""
    shapes = released_shapes(None, TINY_SIGLIP, TINY_LLM)
    tensors = random_tensors(shapes, dtype=torch.float32)
    settings = tiny_config_json(hybrid=False)
    write_released(tmp_path, tensors, config=settings, kind="safetensors", shards=1)
    built = _load(siglip_only, tmp_path)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        pixels = pixel_view(siglip_only, part="siglip", images=images, dtype=torch.float32)
        expected = _released_visual_tokens(tensors, pixels, layers=2, heads=2)
        found = built.module.adaptor(built.frozen.encode(images))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def _released_visual_tokens(tensors, pixels, *, layers, heads):
    """pixels (n, 3, 32, 32) -> (n, 16, 64)."""

    def linear(name, state):
        return F.linear(state, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(name, state):
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        return F.layer_norm(state, state.shape[-1:], weight, bias, eps=1e-6)

    tower = "vision_model.vision_tower."
    patches = F.conv2d(
        pixels,
        tensors[tower + "patch_embed.proj.weight"],
        tensors[tower + "patch_embed.proj.bias"],
        stride=8,
    )
    state = patches.flatten(2).transpose(1, 2) + tensors[tower + "pos_embed"]
    for n in range(layers):
        block = f"{tower}blocks.{n}."
        count, tokens, width = state.shape
        mixed = linear(block + "attn.qkv", norm(block + "norm1", state))
        mixed = mixed.reshape(count, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        query, key, value = mixed
        weights = (query @ key.transpose(-1, -2) / (width // heads) ** 0.5).softmax(-1)
        attended = (weights @ value).transpose(1, 2).reshape(count, tokens, width)
        state = state + linear(block + "attn.proj", attended)
        inner = F.gelu(linear(block + "mlp.fc1", norm(block + "norm2", state)))
        state = state + linear(block + "mlp.fc2", inner)
    state = norm(tower + "norm", state)
    return linear("aligner.layers.2", F.gelu(linear("aligner.layers.0", state)))


def test_segment_anythings_own_file_fills_sam_and_both_necks(tiny, tmp_path):
    shapes = sam_shapes(TINY_SAM, "image_encoder.") | {"mask_decoder.iou_token.weight": (1, 4)}
    tensors = random_tensors(shapes, dtype=torch.float32)
    torch.save(tensors, tmp_path / "sam_vit_b_01ec64.pth")
    built = _fresh(tiny)
    load_weights(built, directories={"sam": tmp_path})
    state = built.part_state("sam")
    assert len(state) == len(shapes) - 1
    for ours, theirs in (
        ("sam.pos_embed", "pos_embed"),
        ("sam.layers.1.layer_norm2.bias", "blocks.1.norm2.bias"),
        ("sam.layers.0.attn.rel_pos_w", "blocks.0.attn.rel_pos_w"),
        ("sam.patch_embed.projection.weight", "patch_embed.proj.weight"),
        ("sam.neck.layer_norm2.weight", "neck.3.weight"),
    ):
        assert torch.equal(state[ours], tensors[f"image_encoder.{theirs}"])
    second = built.part_state("adaptor")["adaptor.neck.conv2.weight"]
    assert torch.equal(second, tensors["image_encoder.neck.2.weight"])


@pytest.mark.parametrize(
    ("vision", "said"), [({"cls": "SomeTower"}, "'SomeTower'"), ("siglip", "None"), (None, "None")]
)
def test_a_tower_of_another_release_is_refused(tiny, tmp_path, vision, said):
    settings = tiny_config_json(hybrid=True) | {"vision_config": vision}
    write_released(tmp_path, {}, config=settings, kind="safetensors", shards=1)
    with pytest.raises(WeightsError, match=rf"vision_config\.cls {said}; expected 'Hybrid"):
        PublishedDirectory(tmp_path, config=tiny)


def test_every_misfit_of_a_released_directory_is_in_one_message(tiny, tmp_path):
    shapes = released_shapes(TINY_SAM, TINY_SIGLIP, TINY_LLM)
    del shapes["aligner.high_up_proj.bias"]
    shapes["language_model.lm_head.weight"] = (500, 64)
    shapes["vision_model.vision_tower_low.vision_tower.blocks.0.attn.qkv.bias"] = (95,)
    shapes["vision_model.vision_tower_low.vision_tower.blocks.9.norm1.bias"] = (32,)
    shapes["vision_model.extra"] = (3,)
    settings = tiny_config_json(hybrid=True)
    settings["language_config"] |= {
        "num_attention_heads": 4,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    }
    tensors = random_tensors(shapes, dtype=torch.float32)
    write_released(tmp_path, tensors, config=settings, kind="bin", shards=2)
    with pytest.raises(WeightsError) as error:
        _load(tiny, tmp_path)
    message = str(error.value)
    assert f"{tmp_path} does not fit parts 'sam', 'siglip', 'adaptor', 'language' of" in message
    assert "missing adaptor.aligner.high_res_vision_proj.bias (32,)" in message
    assert "mis-shaped language.lm_head.weight: found (500, 64), expected (512, 64)" in message
    assert "mis-shaped siglip.encoder.layers.0.self_attn.k_proj.bias: found (95,)" in message
    assert "unexpected siglip.encoder.layers.9.layer_norm1.bias (32,)" in message
    assert "unexpected vision_model.extra (3,) (no tensor of a 'multi_modality with" in message
    assert "num_attention_heads of language is 4, model.language.heads is 2" in message
    assert "rotary embedding of language is of type 'linear'" in message


def test_a_whole_hybrid_model_does_not_pass_for_one_without_sam(siglip_only, tmp_path):
    """The names of the parts that it has fit; SAM would be left out in silence."""
    shapes = released_shapes(TINY_SAM, TINY_SIGLIP, TINY_LLM)
    tensors = random_tensors(shapes, dtype=torch.float32)
    settings = tiny_config_json(hybrid=True)
    write_released(tmp_path, tensors, config=settings, kind="safetensors", shards=1)
    with pytest.raises(WeightsError, match=r"unexpected sam\.layers\.0"):
        _load(siglip_only, tmp_path)
    built = _fresh(siglip_only)
    load_weights(built, directories={"siglip": tmp_path, "language": tmp_path})


def test_a_partial_language_config_has_llamas_defaults(config_of):
    """The released 7B says depth, vocabulary and context, and no more."""
    settings = {
        "model_type": "multi_modality",
        "language_config": {
            "model_type": "llama",
            "num_hidden_layers": 30,
            "vocab_size": 102400,
            "max_position_embeddings": 16384,
        },
    }
    full = config_of("deepseek_vl_7b")
    assert setting_differences(settings, part="language", config=full) == []
    small = setting_differences(settings, part="language", config=config_of("deepseek_vl_1.3b"))
    assert small == [
        "config.json: num_attention_heads of language is 32, model.language.heads is 16",
        "config.json: num_key_value_heads of language is 32, model.language.kv_heads is 16",
    ]
    settings["language_config"]["rope_theta"] = 5e5
    assert (
        "rope_theta of language is 500000.0, model.language.rope_theta is 10000.0"
        in (setting_differences(settings, part="language", config=full)[0])
    )
    settings["language_config"] = ["llama"]
    assert (
        "the settings of language are not understood"
        in (setting_differences(settings, part="language", config=full)[0])
    )


def test_the_config_has_the_released_shape(config_of, build, tiny, tmp_path, export_tokens):
    prompted = dataclasses.replace(export_tokens, system_prompt=" Be kind. ")
    made = export_model(
        tmp_path,
        kind=ExportFormat.deepseek_vl,
        config=tiny,
        source=StateSource(dict(build(tiny).named_parameters())),
        tokens=prompted,
        dtype=torch.float16,
        shard_bytes=10**9,
    )
    assert "siglip.head.probe" in made
    assert "sam.unused_norm.weight" in made
    assert _stored(tmp_path).keys() == released_shapes(TINY_SAM, TINY_SIGLIP, TINY_LLM).keys()
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["model_type"] == "multi_modality"
    assert settings["architectures"] == ["MultiModalityCausalLM"]
    assert settings["torch_dtype"] == "float16"
    assert settings["aligner_config"] == {
        "model_type": "aligner",
        "cls": "MlpProjector",
        "params": {
            "depth": 2,
            "input_dim": 32,
            "n_embed": 64,
            "projector_type": "low_high_hybrid_split_mlp_gelu",
        },
    }
    language = settings["language_config"]
    assert (language["num_attention_heads"], language["rope_theta"]) == (2, 10000.0)
    params = settings["vision_config"]["params"]
    assert params["concat_type"] == "tuple"
    assert params["width"] == [64, 32]
    assert params["high_res_cfg"]["output_dim"] == 64
    assert params["high_res_cfg"]["model_name"] == "sam_width32_layers2_patch8_downsample"
    assert params["low_res_cfg"]["model_name"] == "siglip_width32_layers2_patch8_32"
    chat = json.loads((tmp_path / "processor_config.json").read_text())
    assert (chat["num_image_tokens"], chat["system_prompt"]) == (16, "Be kind.")
    assert (chat["sft_format"], chat["image_tag"]) == ("deepseek", "<image_placeholder>")
    images = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (images["image_size"], images["do_normalize"], images["min_size"]) == (64, False, 14)
    assert [int(255 * mean) for mean in images["image_mean"]] == [122, 116, 104]
    assert images["background_color"] == [122, 116, 104]
    assert (language["bos_token_id"], language["eos_token_id"]) == (0, 1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert tokenizer("<image_placeholder>", add_special_tokens=False)["input_ids"] == [3]


def test_the_released_towers_have_the_released_names(config_of, export_tokens):
    from vltrain.models.export_original import OriginalRelease

    def settings(name):
        return OriginalRelease().settings(
            config_of(name), tokens=export_tokens, dtype=torch.bfloat16, unused={}
        )

    hybrid = settings("deepseek_vl_7b")["vision_config"]
    assert hybrid["cls"] == "HybridVisionTower"
    assert hybrid["params"]["high_res_cfg"]["model_name"] == "sam_b_downsample"
    assert hybrid["params"]["low_res_cfg"]["model_name"] == "siglip_large_patch16_384"
    assert settings("deepseek_vl_1.3b")["vision_config"] == {
        "model_type": "vision",
        "cls": "CLIPVisionTower",
        "params": {
            "image_size": 384,
            "model_name": "siglip_large_patch16_384",
            "select_feature": "same",
            "select_layer": -1,
        },
    }
    aligner = settings("deepseek_vl_1.3b")["aligner_config"]["params"]
    assert (aligner["projector_type"], aligner["n_embed"]) == ("mlp_gelu", 2048)
