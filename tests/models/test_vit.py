"""The tower that transformers brings: described by its own files, and its weights, whole or inside
a larger model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from model_choices import CLIP, DINOV2, overrides
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2ForImageClassification,
)

from vltrain.errors import ConfigError, WeightsError
from vltrain.models.build import build_model
from vltrain.models.config import ModelConfig, VitConfig
from vltrain.models.vision_files import with_described_vit
from vltrain.models.weights import load_weights, published_digests, tensor_digests

PROCESSOR = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "do_resize": True}


def whole_clip() -> CLIPModel:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {"intermediate_size": 16, "vocab_size": 32}
    return CLIPModel(CLIPConfig(vision_config=dict(CLIP["settings"]), text_config=text))


def fresh(config: ModelConfig):
    return build_model(
        config,
        trainable=["adaptor"],
        freeze=[],
        dtype=torch.float32,
        frozen_dtype=torch.float32,
        device="cpu",
        seed=3,
    )


@pytest.fixture
def clip(config_of) -> ModelConfig:
    return config_of("tiny", overrides("clip", "mlp"))


@pytest.mark.parametrize("whole", [True, False])
def test_clip_weights_from_the_tower_or_the_whole_model(clip, tmp_path, whole):
    stock = whole_clip() if whole else CLIPVisionModel(CLIPVisionConfig(**CLIP["settings"]))
    stock.save_pretrained(tmp_path)
    tower = stock.vision_model if whole else stock
    built = fresh(clip)
    load_weights(built, directories={"vit": tmp_path})
    found = built.tower("vit").state_dict()
    expected = tower.state_dict()
    assert found.keys() == {f"model.{name}" for name in expected}
    for name, tensor in expected.items():
        assert torch.equal(found[f"model.{name}"], tensor)
    digests = published_digests(clip, part="vit", directory=tmp_path)
    assert digests == tensor_digests(built.part_state("vit").items())


def test_dinov2_weights_from_a_classifier(config_of, tmp_path):
    config = config_of("tiny", overrides("siglip_dinov2", "shared"))
    stock = Dinov2ForImageClassification(Dinov2Config(**DINOV2["settings"]))
    stock.save_pretrained(tmp_path)
    built = fresh(config)
    load_weights(built, directories={"vit": tmp_path})
    for name, tensor in stock.dinov2.state_dict().items():
        assert torch.equal(built.tower("vit").model.state_dict()[name], tensor)


def test_every_tensor_of_the_tower_is_accounted_for(clip, tmp_path):
    settings = CLIP["settings"] | {"num_hidden_layers": 4}  # one more than the model has
    CLIPVisionModel(CLIPVisionConfig(**settings)).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"unexpected .*layers\.3\.[^ ]+ .*no tensor of a 'clip"):
        load_weights(fresh(clip), directories={"vit": tmp_path})
    settings = CLIP["settings"] | {"num_hidden_layers": 2, "intermediate_size": 96}
    CLIPVisionModel(CLIPVisionConfig(**settings)).save_pretrained(tmp_path)
    with pytest.raises(WeightsError) as error:
        load_weights(fresh(clip), directories={"vit": tmp_path})
    assert "missing vit.model.encoder.layers.2.mlp.fc1.weight" in str(error.value)
    assert "mis-shaped vit.model.encoder.layers.0.mlp.fc1.weight: found (96, 32)" in str(
        error.value
    )


def test_weights_of_another_kind_of_tower_are_refused(clip, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2"}))
    with pytest.raises(WeightsError, match=r"'dinov2', but model\.vit\.model_type is 'clip_v"):
        load_weights(fresh(clip), directories={"vit": tmp_path})


def test_a_directory_without_weights_is_named(clip, tmp_path):
    with pytest.raises(WeightsError, match="is no published directory: it has no"):
        load_weights(fresh(clip), directories={"vit": tmp_path})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json is damaged"):
        load_weights(fresh(clip), directories={"vit": tmp_path})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(WeightsError, match="cannot be read as CLIPVisionModel"):
        load_weights(fresh(clip), directories={"vit": tmp_path})


def published(directory: Path) -> Path:
    """A whole CLIP with its processor, as people publish it."""
    whole_clip().save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return directory


def at(directory: Path, **settings) -> ModelConfig:
    return ModelConfig(sam=None, siglip=None, vit=VitConfig(path=str(directory), **settings))


def test_a_directory_describes_its_tower(clip, tmp_path):
    described = with_described_vit(at(published(tmp_path)))
    vit = described.vit
    assert vit is not None
    assert (vit.path, vit.model_type) == (None, "clip_vision_model")
    assert (vit.image_size, vit.patch_size) == (32, 8)
    assert (vit.mean, vit.std) == (PROCESSOR["image_mean"], PROCESSOR["image_std"])
    assert vit.settings.items() >= CLIP["settings"].items()
    assert described.weights.vit == str(tmp_path)
    assert described.tokens_per_image == 16
    # Read once: nothing of it is needed again, and it loads what it describes.
    assert with_described_vit(described) is described
    clip.vit = vit
    load_weights(fresh(clip), directories={"vit": tmp_path})


def test_what_is_set_beside_the_path_stands(tmp_path):
    given = at(published(tmp_path), image_size=40, mean=[0.5] * 3, std=[0.5] * 3)
    given.weights.vit = "/elsewhere"
    described = with_described_vit(given)
    assert described.vit is not None
    assert (described.vit.image_size, described.vit.mean) == (40, [0.5] * 3)
    assert described.visual_grid == 5
    assert described.weights.vit == "/elsewhere"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, r"config\.json does not exist; expected a published directory"),
        ("config.json", "{", "is no JSON"),
        ("config.json", "[]", "holds a list, expected an object"),
        ("config.json", '{"model_type": "dinov9"}', "no tower that transformers knows .*'dinov9'"),
        ("config.json", '{"model_type": "llama"}', "image_size None, expected one whole number"),
        ("preprocessor_config.json", None, "how the tower's pixels are normalised: set model.vit"),
        ("preprocessor_config.json", '{"image_mean": 0.5}', "image_mean 0.5, expected a list"),
    ],
)
def test_a_directory_that_does_not_say_it_is_refused(tmp_path, file, content, message):
    path = published(tmp_path) / file
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        with_described_vit(at(tmp_path))
