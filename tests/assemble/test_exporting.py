"""The weights of a run, from wherever each part lies."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_samples import manifest, store
from model_yaml import model_config
from safetensors.torch import load_file, save_file
from transformers.models.siglip.modeling_siglip import SiglipVisionModel

from vltrain.assemble.exporting import RunWeights
from vltrain.assemble.inference import FoundRun
from vltrain.checkpoint.handoff import HandOff, OriginKind, PartOrigin
from vltrain.checkpoint.manifest import ParamRecord, PartRecord
from vltrain.checkpoint.store import open_checkpoint
from vltrain.engine.fragments import Fragment, FragmentKind
from vltrain.errors import CheckpointError, ContractError
from vltrain.models.build import build_model
from vltrain.models.export_part import export_part
from vltrain.models.vision import siglip_vision_config
from vltrain.models.weights import part_digest, published_digests, tensor_digests
from vltrain.runconfig import RunConfig

NORM = "siglip.post_layernorm.weight"


@pytest.fixture
def config() -> RunConfig:
    return run_of("tiny")


def run_of(name: str) -> RunConfig:
    return RunConfig(model=model_config(name))


@pytest.fixture
def published(config: RunConfig, tmp_path: Path) -> Path:
    """SigLIP with its pooling head."""
    record = siglip_vision_config(config.model.siglip)
    record.vision_use_head = True
    SiglipVisionModel(record).save_pretrained(tmp_path / "siglip")
    return tmp_path / "siglip"


def checkpoint(directory: Path, *, siglip: PartRecord) -> Path:
    """A checkpoint that holds one tensor of SigLIP where that trained."""
    made = store(directory)
    params = {NORM: ParamRecord(shape=(32,), dtype="float32", part="siglip")}
    values = torch.full((32,), 7.0)
    fragment = Fragment(name=NORM, kind=FragmentKind.master, offset=0, values=values)
    made.save(
        manifest(10, parts={"siglip": siglip}, params=params if siglip.trained else {}),
        iter([fragment] if siglip.trained else []),
    )
    return made.path(10)


def found(config: RunConfig, directory: Path, origin: PartOrigin) -> FoundRun:
    opened = open_checkpoint(directory)
    encoder: Any = None
    return FoundRun(
        directory=directory,
        config=config,
        checkpoint=opened,
        encoder=encoder,
        origins=HandOff(predecessor=opened, parts={"siglip": origin}),
    )


def trained(config: RunConfig, directory: Path) -> RunWeights:
    kind = OriginKind.checkpoint
    origin = PartOrigin(part="siglip", kind=kind, path=directory, digest=None)
    return RunWeights(found(config, directory, origin))


def test_unused_tensors_of_a_trained_part_come_from_where_it_began_stages_ago(
    config: RunConfig, published: Path, tmp_path: Path
) -> None:
    kept = PartRecord(trained=False, path=str(published), digest="d")
    second = checkpoint(tmp_path / "second", siglip=kept)
    began = PartRecord(trained=True, path=str(second), digest="d")
    third = checkpoint(tmp_path / "third", siglip=began)
    weights = trained(config, third)
    assert torch.equal(weights.tensor(NORM), torch.full((32,), 7.0))
    stored = load_file(published / "model.safetensors")
    assert torch.equal(weights.tensor("siglip.head.probe"), stored["head.probe"])
    assert weights.shapes["siglip.head.attention.v.weight"] == (32, 32)
    assert "siglip.post_layernorm.bias" not in weights.shapes  # it would be the untrained one


def test_where_the_beginning_is_gone_there_are_no_unused_tensors(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = PartRecord(trained=True, path=str(tmp_path / "gone"), digest="d")
    weights = trained(config, checkpoint(tmp_path / "run", siglip=gone))
    assert set(weights.shapes) == {NORM}
    assert "unused tensors of siglip cannot be read where it began" in caplog.text
    fresh = PartRecord(trained=True, path=None, digest="d")
    assert set(trained(config, checkpoint(tmp_path / "new", siglip=fresh)).shapes) == {NORM}


def test_a_checkpoint_on_the_way_that_is_damaged(
    config: RunConfig, published: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = PartRecord(trained=False, path=str(published), digest="d")
    second = checkpoint(tmp_path / "second", siglip=kept)
    (second / "manifest.json").write_text("{")
    began = PartRecord(trained=True, path=str(second), digest="d")
    weights = trained(config, checkpoint(tmp_path / "third", siglip=began))
    assert set(weights.shapes) == {NORM}
    assert "unused tensors of siglip cannot be followed back" in caplog.text


def test_a_frozen_part_is_read_where_it_is_and_must_be_unchanged(
    config: RunConfig, published: Path, tmp_path: Path
) -> None:
    digests = published_digests(config.model, part="siglip", directory=published)
    assert not any("head" in name for name in digests)
    digest = part_digest(digests)
    kept = PartRecord(trained=False, path=str(published), digest=digest)
    directory = checkpoint(tmp_path / "run", siglip=kept)
    kind = OriginKind.published
    origin = PartOrigin(part="siglip", kind=kind, path=published, digest=digest)
    run = found(config, directory, origin)
    weights = RunWeights(run)
    stored = load_file(published / "model.safetensors")
    assert torch.equal(weights.tensor(NORM), stored["post_layernorm.weight"])
    assert set(digests) <= set(weights.shapes)
    assert "siglip.head.probe" in weights.shapes
    changed = stored | {"post_layernorm.weight": torch.zeros(32)}
    save_file(changed, published / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ContractError, match=r"The weights of siglip at .* have the digest"):
        RunWeights(run)


def test_a_frozen_part_that_was_never_stored_is_drawn_from_the_seed(
    config: RunConfig, tmp_path: Path
) -> None:
    kept = PartRecord(trained=False, path=None, digest=None)
    directory = checkpoint(tmp_path / "run", siglip=kept)
    origin = PartOrigin(part="siglip", kind=OriginKind.fresh, path=None, digest=None)
    weights = RunWeights(found(config, directory, origin))
    other = dataclasses.replace(config, run=dataclasses.replace(config.run, seed=5))
    others = RunWeights(found(other, directory, origin))
    name = "siglip.encoder.layers.0.self_attn.q_proj.weight"
    assert weights.shapes[name] == (32, 32)
    assert not torch.equal(weights.tensor(name), others.tensor(name))


def corrected_run(tmp_path: Path, *, corrections: list[list[float]] | None) -> FoundRun:
    """A run of the tiny DeepSeek-VL2 whose language model is frozen as published, with other
    corrections in the run's manifest than among the published tensors."""
    run = run_of("tiny_vl2")
    built = build_model(
        run.model,
        trainable=(),
        freeze=(),
        dtype=torch.float32,
        frozen_dtype=torch.float32,
        device="cpu",
        seed=0,
    )
    directory = tmp_path / "language"
    state = built.part_state("language")
    export_part(directory, config=run.model, part="language", state=state)
    digest = part_digest(published_digests(run.model, part="language", directory=directory))
    assert digest == part_digest(tensor_digests(state.items()))
    made = store(tmp_path / "run")
    record = PartRecord(trained=False, path=str(directory), digest=digest)
    counters = {"sums": {}, "faults": {}, "routers": corrections}
    made.save(manifest(10, parts={"language": record}, params={}, counters=counters), iter([]))
    kind = OriginKind.published
    origin = PartOrigin(part="language", kind=kind, path=directory, digest=digest)
    opened = open_checkpoint(made.path(10))
    encoder: Any = None
    return FoundRun(
        directory=tmp_path,
        config=run,
        checkpoint=opened,
        encoder=encoder,
        origins=HandOff(predecessor=opened, parts={"language": origin}),
    )


def test_corrections_are_as_the_run_left_them(tmp_path: Path) -> None:
    left = [[0.001 * k for k in range(8)], [-0.25] * 8]
    weights = RunWeights(corrected_run(tmp_path, corrections=left))
    for layer, row in zip((1, 2), left, strict=True):
        name = f"language.model.layers.{layer}.mlp.gate.e_score_correction_bias"
        assert weights.shapes[name] == (8,)
        assert torch.equal(weights.tensor(name), torch.tensor(row))
    stack = "language.model.layers.1.mlp.experts.gate_up_proj"
    assert weights.tensor(stack).shape == weights.shapes[stack] == (8, 64, 32)


def test_corrections_of_another_model_are_refused(tmp_path: Path) -> None:
    run = corrected_run(tmp_path, corrections=None)
    with pytest.raises(CheckpointError, match="has router corrections of none"):
        RunWeights(run)
