"""Masters of what a stage starts with."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from checkpoint_samples import WEIGHT, saved
from safetensors.torch import save_file

from vltrain.assemble.weights import masters_of
from vltrain.checkpoint.handoff import HandOff, OriginKind, PartOrigin
from vltrain.checkpoint.store import open_checkpoint
from vltrain.engine.fragments import FragmentKind
from vltrain.models.config import AdaptorConfig, ModelConfig

NORM = "language.model.norm.weight"


def from_checkpoint(directory: Path) -> HandOff:
    checkpoint = open_checkpoint(saved(directory, 10).path(10))
    origin = PartOrigin(
        part="adaptor", kind=OriginKind.checkpoint, path=checkpoint.directory, digest=None
    )
    return HandOff(predecessor=checkpoint, parts={"adaptor": origin})


def from_published(directory: Path, stored: torch.Tensor) -> HandOff:
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file({"model.norm.weight": stored}, directory / "model.safetensors")
    origin = PartOrigin(part="language", kind=OriginKind.published, path=directory, digest=None)
    return HandOff(predecessor=None, parts={"language": origin})


def test_what_the_predecessor_kept_frozen_has_no_master(tmp_path: Path) -> None:
    read = masters_of(from_checkpoint(tmp_path), config=ModelConfig(), dtype=torch.bfloat16)
    assert read is not None
    found = read("adaptor.weight", FragmentKind.master, 2, 3)
    assert found is not None
    assert found.equal(WEIGHT.flatten()[2:5])
    assert read("adaptor.fixed", FragmentKind.master, 0, 2) is None  # load_parts has brought it
    assert read("adaptor.unknown", FragmentKind.master, 0, 2) is None
    assert read(NORM, FragmentKind.master, 0, 2) is None


def test_published_fp32_weights_do_not_pass_through_bf16(tmp_path: Path) -> None:
    stored = torch.tensor([1.0001, 2.0002, 3.0003])
    origins = from_published(tmp_path, stored)
    read = masters_of(origins, config=ModelConfig(), dtype=torch.bfloat16)
    assert read is not None
    found = read(NORM, FragmentKind.master, 1, 2)
    assert found is not None
    assert found.equal(stored[1:])
    assert read("language.lm_head.weight", FragmentKind.master, 0, 1) is None
    assert masters_of(origins, config=ModelConfig(), dtype=torch.float32) is None


def test_published_fp16_weights_do_not_pass_through_bf16_either(tmp_path: Path) -> None:
    """As wide as bf16, and with three more bits of mantissa."""
    stored = torch.tensor([1.001, 2.002, 3.003], dtype=torch.float16)
    read = masters_of(from_published(tmp_path, stored), config=ModelConfig(), dtype=torch.bfloat16)
    assert read is not None
    found = read(NORM, FragmentKind.master, 1, 2)
    assert found is not None
    assert found.equal(stored[1:].float())


def test_published_bf16_weights_are_in_the_module_as_they_are(tmp_path: Path) -> None:
    origins = from_published(tmp_path, torch.ones(3, dtype=torch.bfloat16))
    read = masters_of(origins, config=ModelConfig(), dtype=torch.bfloat16)
    assert read is not None
    assert read(NORM, FragmentKind.master, 0, 3) is None


def test_the_necks_of_a_fresh_adaptor_begin_as_sams_not_as_its_bf16_copy(tmp_path: Path) -> None:
    stored = torch.tensor([1.0001, 2.0002])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam_vision_model"}))
    save_file({"vision_encoder.neck.layer_norm1.weight": stored}, tmp_path / "model.safetensors")
    sam = PartOrigin(part="sam", kind=OriginKind.published, path=tmp_path, digest=None)
    fresh = PartOrigin(part="adaptor", kind=OriginKind.fresh, path=None, digest=None)
    for own_neck, prefix in ((False, "adaptor.neck."), (True, "adaptor.sam_neck.")):
        config = ModelConfig(adaptor=AdaptorConfig(train_sam_neck=own_neck))
        origins = HandOff(predecessor=None, parts={"sam": sam, "adaptor": fresh})
        read = masters_of(origins, config=config, dtype=torch.bfloat16)
        assert read is not None
        found = read(f"{prefix}layer_norm1.weight", FragmentKind.master, 1, 1)
        assert found is not None
        assert found.equal(stored[1:])
        assert read("adaptor.alpha", FragmentKind.master, 0, 1) is None
