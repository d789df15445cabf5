"""The card of an export, from a manifest written by hand."""

from __future__ import annotations

from typing import Any

import pytest
from checkpoint_samples import manifest
from model_yaml import model_config

from vltrain.assemble.model_card import model_card
from vltrain.checkpoint.manifest import Manifest, PartRecord
from vltrain.evaluate.results import Accuracy, HeldOutLoss, Point
from vltrain.models.config import ModelConfig
from vltrain.models.export import ExportFormat

BIRDS = {
    "kind": "caption",
    "modality": "multimodal",
    "share": 1.0,
    "licence": "CC0",
    "source": "a museum | hall 2",
    "attribution": "Birds by them.",
}
RECIPE = {
    "steps": 10,
    "lr": 1e-3,
    "schedule": "cosine",
    "sequences": 256,
    "sequence_length": 512,
}


def second_stage(**changes: Any) -> Manifest:
    first = {
        "stage": {"number": 1, "name": "align", "trainable": ["adaptor"]},
        "run": "one",
        "step": 10,
        "recipe": RECIPE,
        "sums": {"tokens": {"language": 0, "multimodal": 1234}, "images": 56},
        "read": {"birds": 56},
        "data": {"birds": BIRDS},
        "parts": {
            "sam": {"trained": False, "path": "/secret/of/me/sam-b/", "digest": "ab12"},
            "adaptor": {"trained": True, "path": None, "digest": None},
        },
    }
    return manifest(
        20,
        stage={"number": 2, "name": "pretrain", "trainable": ["adaptor", "language"]},
        run={"name": "two", "dir": "/secret/of/me/two"},
        counters={"sums": {}, "faults": {"read": {"birds": 1, "books": 3}}},
        data={
            "birds": BIRDS,
            "books": {**BIRDS, "modality": "language", "licence": "", "attribution": ""},
        },
        parts={"sam": PartRecord(trained=False, path="/secret/of/me/sam-b", digest="ab12")},
        lineage=[first],
        **changes,
    )


@pytest.fixture
def tiny() -> ModelConfig:
    return model_config("tiny")


def card(config: ModelConfig, **changes: Any) -> str:
    words: dict[str, Any] = {"kind": ExportFormat.transformers, "points": [], "neutral": []}
    return model_card(second_stage(), config=config, **{**words, **changes})


def test_stages_data_licences_and_base_weights(tiny: ModelConfig) -> None:
    text = card(tiny)
    assert text.startswith("---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\n---")
    assert "exported from step 20 of stage 2 (pretrain) of the run `two`" in text
    assert "| all | 242,049 |" in text
    assert "| 1 align | adaptor | 10 | 0 | 1,234 | 56 | 0.001 cosine | 256 x 512 |" in text
    unknown = " | ".join(["not stated"] * 5)
    assert f"| 2 pretrain | adaptor, language | 20 | {unknown} |" in text
    assert "| 1 | birds | caption | multimodal | 100.0 % | 56 (100.0 %) | CC0 | a museum \\" in text
    assert "| 2 | books | caption | language | 100.0 % | 3 (75.0 %) | not stated | a mus" in text
    assert text.count("Birds by them.") == 1
    assert "| sam | sam-b | `ab12` |" in text
    assert "| adaptor | random values | not stated |" in text
    assert "secret" not in text
    assert "was not evaluated" in text
    assert "AutoModelForImageTextToText.from_pretrained" in text
    assert "Remarks" not in text


def test_scores_are_those_of_the_last_evaluation(tiny: ModelConfig) -> None:
    point = Point(
        stage="pretrain",
        step=20,
        model="two",
        held_out={"birds": HeldOutLoss(records=5, targets=70, loss=2.5, blank_loss=3.0, faults=0)},
        questions={"quiz": {"what": Accuracy(asked=50, right=31, right_blank=10, chance=None)}},
    )
    text = card(tiny, points=[point])
    assert "62.0 (20.0) | 50 asked |" in text
    assert "| birds, loss | 2.500 (3.000) | 70 targets |" in text


def test_what_the_original_layout_cannot_say_is_remarked(tiny: ModelConfig) -> None:
    tiny.pad_color = [1, 2, 3]
    text = card(tiny, kind=ExportFormat.deepseek_vl, neutral=["siglip.head.probe"])
    assert "library_name" not in text
    assert "model_type: multi_modality" in text
    assert "- 1 tensors that this layout has and no forward pass reads" in text
    assert "siglip.head.probe." in text
    assert "colour (1, 2, 3); the original release's processor pads with (122, 116, 104)" in text


def test_a_manifest_of_before_data_was_recorded(tiny: ModelConfig) -> None:
    words = {"kind": ExportFormat.transformers, "points": [], "neutral": []}
    text = model_card(manifest(3), config=tiny, **words)
    assert "The manifest does not say which data was seen." in text
    assert "| 1 align | not stated | 3 |" in text


def test_the_layout_of_deepseek_vl2_is_told(tiny: ModelConfig) -> None:
    config = model_config("tiny_vl2")
    text = card(config, kind=ExportFormat.deepseek_vl2)
    assert "library_name" not in text
    assert "model_type: deepseek_vl_v2" in text
    assert "DeepSeek-VL2 architecture (SigLIP on at most 4 tiles, 16 tokens per tile; 8 exp" in text
    assert "Remarks" not in text
    assert "of the DeepSeek-VL architecture (SAM and SigLIP, 16 tokens per image)" in card(tiny)
    assert config.tiling is not None
    config.tiling.max_tiled_images = 3
    config.pad_color = [0, 0, 0]
    text = card(config, kind=ExportFormat.deepseek_vl2)
    assert "by the rule effective, at most 3 of a conversation; the original release's" in text
    assert "colour (0, 0, 0); the original release's processor pads with (127, 127, 127)" in text
