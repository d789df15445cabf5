from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, SamConfig, SamModel, SiglipConfig, SiglipModel
from transformers.models.sam.modeling_sam import SamVisionModel
from transformers.models.siglip.modeling_siglip import SiglipVisionModel

from vltrain.errors import WeightsError
from vltrain.models.build import build_model
from vltrain.models.published import llama_config
from vltrain.models.published_settings import setting_differences
from vltrain.models.vision import sam_vision_config, siglip_vision_config
from vltrain.models.weights import (
    load_weights,
    part_digest,
    published_digests,
    tensor_digest,
    tensor_digests,
)


def _fresh(config, *, seed=0, dtype=torch.float32):
    return build_model(
        config,
        trainable=["adaptor"],
        freeze=[],
        dtype=dtype,
        frozen_dtype=dtype,
        device="cpu",
        seed=seed,
    )


def _tiny_sam_model(config) -> SamModel:
    vision = sam_vision_config(config.sam)
    small = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "num_point_embeddings": 2}
    decoder = {"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2}
    return SamModel(
        SamConfig(
            vision_config=vision.to_dict(),
            prompt_encoder_config=small,
            mask_decoder_config=decoder,
        )
    )


def _tiny_siglip_model(config) -> SiglipModel:
    vision = siglip_vision_config(config.siglip).to_dict() | {"vision_use_head": True}
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
    return SiglipModel(SiglipConfig(vision_config=vision, text_config=text))


def _equal(part: dict, other: dict, *, strip: str, prefix: str) -> None:
    assert part
    for name, tensor in part.items():
        torch.testing.assert_close(tensor, other[prefix + name.removeprefix(strip)])


@pytest.mark.parametrize("whole", [True, False])
def test_sam_loads_from_both_of_its_published_classes(tiny, tmp_path, whole):
    stock = _tiny_sam_model(tiny) if whole else SamVisionModel(sam_vision_config(tiny.sam))
    stock.save_pretrained(tmp_path)
    built = _fresh(tiny)
    load_weights(built, directories={"sam": tmp_path})
    state = stock.state_dict()
    _equal(built.part_state("sam"), state, strip="sam.", prefix="vision_encoder.")
    for name, parameter in built.module.adaptor.neck.named_parameters():
        torch.testing.assert_close(parameter.detach(), state[f"vision_encoder.neck.{name}"])


def test_the_second_neck_does_not_pass_through_sams_bf16(tiny, tmp_path):
    """A frozen SAM is held in bf16; the adaptor that begins as its neck is not."""
    stock = SamVisionModel(sam_vision_config(tiny.sam))
    stock.save_pretrained(tmp_path)
    built = build_model(
        tiny,
        trainable=["adaptor"],
        freeze=[],
        dtype=torch.float32,
        frozen_dtype=torch.bfloat16,
        device="cpu",
        seed=0,
    )
    load_weights(built, directories={"sam": tmp_path})
    expected = stock.vision_encoder.neck.conv2.weight
    assert not torch.equal(expected, expected.bfloat16().float())
    assert torch.equal(built.module.adaptor.neck.conv2.weight, expected)


def test_sams_neck_goes_to_the_adaptor_that_trains_it(config_of, tmp_path):
    config = config_of("tiny", {"adaptor": {"train_sam_neck": True}})
    stock = SamVisionModel(sam_vision_config(config.sam))
    stock.save_pretrained(tmp_path)
    built = _fresh(config)
    load_weights(built, directories={"sam": tmp_path})
    state = stock.state_dict()
    for neck in (built.module.adaptor.sam_neck, built.module.adaptor.neck):
        for name, parameter in neck.named_parameters():
            torch.testing.assert_close(parameter.detach(), state[f"vision_encoder.neck.{name}"])


@pytest.mark.parametrize("whole", [True, False])
def test_siglip_loads_from_both_of_its_published_classes(tiny, tmp_path, whole):
    vision = siglip_vision_config(tiny.siglip)
    stock = _tiny_siglip_model(tiny) if whole else SiglipVisionModel(vision)
    stock.save_pretrained(tmp_path)
    built = _fresh(tiny)
    load_weights(built, directories={"siglip": tmp_path})
    tower = stock.vision_model if whole else stock
    _equal(built.part_state("siglip"), tower.state_dict(), strip="siglip.", prefix="")


@pytest.mark.parametrize("tied", [True, False])
def test_language_loads_with_a_tied_or_its_own_head(tiny, tmp_path, tied):
    record = llama_config(tiny.language)
    record.tie_word_embeddings = tied
    stock = LlamaForCausalLM(record)
    stock.save_pretrained(tmp_path)
    built = _fresh(tiny)
    load_weights(built, directories={"language": tmp_path})
    _equal(built.part_state("language"), stock.state_dict(), strip="language.", prefix="")


def test_weights_are_cast_to_the_parts_type_and_sharded_files_are_read(tiny, tmp_path):
    stock = LlamaForCausalLM(llama_config(tiny.language))
    stock.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    built = _fresh(tiny, dtype=torch.bfloat16)
    load_weights(built, directories={"language": tmp_path})
    head = built.module.language.lm_head.weight
    torch.testing.assert_close(head, stock.lm_head.weight.bfloat16())


def test_every_tensor_that_does_not_fit_is_named_at_once(tiny, tmp_path):
    stock = LlamaForCausalLM(llama_config(tiny.language))
    stock.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    del state["model.norm.weight"]
    state["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2)
    state["lm_head.weight"] = torch.zeros(5, 64)
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError) as error:
        load_weights(_fresh(tiny), directories={"language": tmp_path})
    message = str(error.value)
    assert f"{tmp_path} does not fit part 'language' of model 'tiny'" in message
    assert "missing language.model.norm.weight (64,)" in message
    assert "unexpected language.model.layers.7.mlp.up_proj.weight (2,)" in message
    assert "mis-shaped language.lm_head.weight: found (5, 64), expected (512, 64)" in message


LLAMA = {"model_type": "llama", "num_attention_heads": 2}
SIGLIP = {"model_type": "siglip_vision_model", "num_attention_heads": 2}
SAM = {
    "model_type": "sam_vision_model",
    "num_attention_heads": 2,
    "window_size": 4,
    "global_attn_indexes": [1],
}


@pytest.mark.parametrize(
    ("part", "settings", "changed", "said"),
    [
        ("language", LLAMA, {"num_attention_heads": 4, "num_key_value_heads": 2}, "heads is 2"),
        ("language", LLAMA, {"num_key_value_heads": 1}, "is 1, model.language.kv_heads is 2"),
        ("language", LLAMA, {"rms_norm_eps": 1e-5}, "is 1e-05, model.language.norm_eps is 1e-06"),
        ("language", LLAMA, {"hidden_act": "gelu"}, "is gelu; here it is always silu"),
        ("siglip", SIGLIP, {"num_attention_heads": 4}, "is 4, model.siglip.heads is 2"),
        ("siglip", SIGLIP, {"layer_norm_eps": 1e-5}, "is 1e-05; here it is always 1e-06"),
        ("sam", SAM, {"num_attention_heads": 4}, "is 4, model.sam.heads is 2"),
        ("sam", SAM, {"window_size": 8}, "is 8, model.sam.window is 4"),
        ("sam", SAM, {"global_attn_indexes": [0]}, "is [0], model.sam.global_layers is [1]"),
        ("sam", SAM, {"hidden_act": "relu"}, "is relu; here it is always gelu"),
        ("sam", SAM, {"layer_norm_eps": 1e-5}, "is 1e-05; here it is always 1e-06"),
    ],
)
def test_a_setting_that_no_shape_shows_is_compared(tiny, part, settings, changed, said):
    assert setting_differences(settings, part=part, config=tiny) == []
    [found] = setting_differences({**settings, **changed}, part=part, config=tiny)
    assert found.startswith(f"config.json: {next(iter(changed))} of {part} is ")
    assert said in found


def test_a_tensor_that_no_rule_names_is_an_error(tiny, tmp_path):
    LlamaForCausalLM(llama_config(tiny.language)).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"value_head.weight": torch.zeros(1)}, file)
    with pytest.raises(
        WeightsError, match=r"unexpected value_head\.weight \(1,\) \(no tensor of a 'llama'\)"
    ):
        load_weights(_fresh(tiny), directories={"language": tmp_path})


def test_directories_that_are_not_published_ones(tiny, tmp_path):
    def load() -> None:
        load_weights(_fresh(tiny), directories={"language": tmp_path})

    with pytest.raises(WeightsError, match=r"gone does not exist\. Name where the weights are now"):
        load_weights(_fresh(tiny), directories={"language": tmp_path / "gone"})
    with pytest.raises(WeightsError, match=r"no config\.json"):
        load()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(WeightsError, match="model_type 'bert'; expected one of sam, "):
        load()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(WeightsError, match=r"no \*\.safetensors"):
        load()
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(WeightsError, match=r"model\.safetensors is damaged"):
        load()


def test_the_wrong_layout_for_a_part_is_all_missing(tiny, tmp_path):
    SamVisionModel(sam_vision_config(tiny.sam)).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"missing siglip\.embeddings"):
        load_weights(_fresh(tiny), directories={"siglip": tmp_path})


def test_a_digest_depends_on_bytes_shape_and_type():
    base = torch.arange(6, dtype=torch.float32)
    digests = {
        tensor_digest(base),
        tensor_digest(base.reshape(2, 3)),
        tensor_digest(base.bfloat16()),
        tensor_digest(base + 1),
        tensor_digest(torch.tensor(0.0)),
    }
    assert len(digests) == 5
    assert tensor_digest(base.reshape(2, 3).t().t()) == tensor_digest(base.reshape(2, 3))
    assert tensor_digest(base.reshape(3, 2).t()) == tensor_digest(
        base.reshape(3, 2).t().contiguous()
    )


def test_a_part_digest_does_not_depend_on_order():
    digests = tensor_digests([("a", torch.zeros(1)), ("b", torch.ones(1))])
    assert part_digest(digests) == part_digest(dict(reversed(digests.items())))
    assert part_digest(digests) != part_digest({"a": digests["b"], "b": digests["a"]})


def test_published_digests_are_of_the_stored_tensors(tiny, tmp_path):
    stock = LlamaForCausalLM(llama_config(tiny.language))
    stock.save_pretrained(tmp_path / "one")
    stock.save_pretrained(tmp_path / "two", max_shard_size="100KB")
    one, two = (
        published_digests(tiny, part="language", directory=tmp_path / name)
        for name in ("one", "two")
    )
    assert one == two
    built = _fresh(tiny)
    load_weights(built, directories={"language": tmp_path / "one"})
    assert one == tensor_digests(built.part_state("language").items())
    shutil.rmtree(tmp_path / "two")
