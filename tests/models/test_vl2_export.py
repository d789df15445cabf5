"""What an export in the layout of DeepSeek-VL2's release writes, and which models it takes."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from released_vl2 import CORRECTION, SMALL_SIGLIP, small_language, vl2_shapes
from safetensors.torch import load_file

from vltrain.errors import ConfigError, WeightsError
from vltrain.models.config import Activation, SiglipConfig
from vltrain.models.export import ExportFormat, StateSource, export_model, refuse_unfit
from vltrain.models.export_vl2 import PAD_TOKEN, mlp_ratio


def export(built, directory, tokens, *, dtype=torch.float32):
    return export_model(
        directory,
        kind=ExportFormat.deepseek_vl2,
        config=built.config,
        source=StateSource(dict(built.named_tensors())),
        tokens=tokens,
        dtype=dtype,
        shard_bytes=10**9,
    )


def test_an_export_reads_a_layers_experts_once(small_vl2, build, tmp_path, export_tokens):
    built = build(small_vl2("base"))
    state = dict(built.named_tensors())
    read = []

    class Counted(StateSource):
        def tensor(self, name):
            read.append(name)
            return super().tensor(name)

    export_model(
        tmp_path,
        kind=ExportFormat.deepseek_vl2,
        config=built.config,
        source=Counted(state),
        tokens=export_tokens,
        dtype=torch.float32,
        shard_bytes=20_000,
    )
    assert sorted(read) == sorted(state)


def test_an_expert_that_is_not_finite_is_named(small_vl2, build, tmp_path, export_tokens):
    """By its published name, and no config.json makes a model of what was begun."""
    built = build(small_vl2("base"))
    built.module.get_parameter("language.model.layers.2.mlp.experts.gate_up_proj").data[5, 40] = (
        float("nan")
    )
    with pytest.raises(WeightsError, match=r"experts\.5\.up_proj\.weight: 32 of 1024"):
        export(built, tmp_path, export_tokens)
    assert list(tmp_path.iterdir()) == []


def test_the_export_has_the_released_shape(small_vl2, build, tmp_path, export_tokens):
    built = build(small_vl2("base"))
    made = export(built, tmp_path, export_tokens, dtype=torch.float16)
    assert "siglip.head.probe" in made
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == vl2_shapes(SMALL_SIGLIP, small_language("base")).keys()
    kinds = {str(t.dtype) for name, t in found.items() if not name.endswith(CORRECTION)}
    assert kinds == {"torch.float16"}
    correction = found[f"language.model.layers.1.mlp.gate.{CORRECTION}"]
    assert correction.dtype == torch.float32
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["model_type"] == "deepseek_vl_v2"
    assert settings["architectures"] == ["DeepseekVLV2ForCausalLM"]
    assert (settings["tile_tag"], settings["global_view_pos"]) == ("2D", "head")
    resolutions = [[28, 28], [28, 56], [56, 28], [28, 84], [84, 28], [28, 112], [112, 28], [56, 56]]
    assert settings["candidate_resolutions"] == resolutions
    assert settings["vision_config"] == {
        "model_type": "vision",
        "model_name": "siglip_width32_layers2_patch4_28",
        "image_size": 28,
        "patch_size": 4,
        "width": 32,
        "layers": 2,
        "heads": 2,
        "mlp_ratio": 2.0,
    }
    projector = settings["projector_config"]
    assert (projector["input_dim"], projector["n_embed"], projector["depth"]) == (32, 32, 2)
    language = settings["language_config"]
    expected = {
        "model_type": "deepseek_v2",
        "torch_dtype": "float16",
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 512,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "use_mla": True,
        "q_lora_rank": None,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 2,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.0,
        "aux_loss_alpha": 0.001,
    }
    assert {key: language[key] for key in expected} == expected
    processor = json.loads((tmp_path / "processor_config.json").read_text())
    assert processor["processor_class"] == "DeepseekVLV2Processor"
    assert processor["candidate_resolutions"] == resolutions
    assert (processor["patch_size"], processor["downsample_ratio"]) == (4, 2)
    assert processor["image_token"] == "<image_placeholder>"
    assert processor["pad_token"] == "<eos>"  # the tokenizer has no other
    assert (tmp_path / "tokenizer.json").read_bytes() == export_tokens.file.read_bytes()
    tokenizer = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (tokenizer["bos_token"], tokenizer["pad_token"]) == ("<bos>", "<eos>")


def test_the_padding_token_is_the_tokenizers_own(small_vl2, build, tmp_path, export_tokens):
    text = export_tokens.file.read_text().replace("<pad>", PAD_TOKEN)
    (tmp_path / "tokenizer.json").write_text(text)
    tokens = dataclasses.replace(export_tokens, directory=tmp_path)
    export(build(small_vl2("tiny")), tmp_path / "out", tokens)
    processor = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert processor["pad_token"] == PAD_TOKEN
    language = json.loads((tmp_path / "out" / "config.json").read_text())["language_config"]
    assert (language["use_mla"], language["kv_lora_rank"]) == (False, None)
    assert (language["qk_rope_head_dim"], language["scoring_func"]) == (0, "softmax")


@pytest.mark.parametrize(
    ("width", "ffn", "ratio"), [(1152, 4304, 3.7362), (30, 69, 2.3), (32, 64, 2.0), (29, 33, 1.138)]
)
def test_the_ratio_gives_the_width_of_the_mlp_again(width, ffn, ratio):
    found = mlp_ratio(SiglipConfig(width=width, ffn=ffn))
    assert int(width * found) == ffn
    assert found == pytest.approx(ratio, abs=2e-4)


@pytest.mark.parametrize("kind", [ExportFormat.transformers, ExportFormat.deepseek_vl])
def test_the_formats_of_the_other_family_are_refused(small_vl2, kind):
    with pytest.raises(
        ConfigError, match=r"transformers has no class for it.*--format deepseek_vl2"
    ):
        refuse_unfit(small_vl2("tiny"), kind=kind)


def test_its_format_is_refused_to_the_other_family(tiny):
    with pytest.raises(ConfigError, match=r"'tiny' cannot be exported as deepseek_vl2: .* tiles"):
        refuse_unfit(tiny, kind=ExportFormat.deepseek_vl2)


def test_a_siglip_that_the_released_code_computes_otherwise_is_refused(small_vl2):
    config = small_vl2("tiny")
    config.siglip.activation = Activation.gelu
    with pytest.raises(ConfigError, match=r"model\.siglip\.activation is gelu and the released"):
        refuse_unfit(config, kind=ExportFormat.deepseek_vl2)


def test_experts_behind_two_towers_have_no_released_layout(config_of):
    experts = {"experts": 4, "per_token": 2, "shared": 1, "ffn": 32}
    config = config_of("tiny", {"language": {"moe": experts}})
    for kind in (ExportFormat.transformers, ExportFormat.deepseek_vl):
        with pytest.raises(
            ConfigError, match=r"cannot be exported: .* or DeepSeek-VL2 \(tiles and"
        ):
            refuse_unfit(config, kind=kind)
    with pytest.raises(ConfigError, match="'tiny' cannot be exported as deepseek_vl2"):
        refuse_unfit(config, kind=ExportFormat.deepseek_vl2)
