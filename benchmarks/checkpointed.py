"""A model under the real engine, and checkpoints of it, for the benchmarks of checkpoints."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from vltrain.checkpoint.manifest import Manifest, ParamRecord, PartRecord
from vltrain.engine.config import Dtype, EngineConfig
from vltrain.engine.engine import Engine, build_engine
from vltrain.models.build import BuiltModel, build_model
from vltrain.models.config import ModelConfig
from vltrain.models.trainable import part_of
from vltrain.optim.config import OptimConfig
from vltrain.optim.groups import parameter_groups

CONF = Path(__file__).resolve().parents[1] / "conf"
PARTS = ("sam", "siglip", "adaptor", "language")
ADAM_BYTES = 12
"""Of a trained parameter in a checkpoint: its fp32 master and AdamW's two moments."""


def built_model(
    name: str, *, trainable: Collection[str], device: str, changes: Mapping[str, Any] | None = None
) -> BuiltModel:
    """The model of conf/model/NAME.yaml, with random weights (on the meta device: none)."""
    schema, values = OmegaConf.structured(ModelConfig), OmegaConf.load(CONF / f"model/{name}.yaml")
    values.pop("defaults", None)  # what a model chooses of other groups
    config = OmegaConf.to_object(OmegaConf.merge(schema, values, dict(changes or {})))
    assert isinstance(config, ModelConfig)
    return build_model(
        config,
        trainable=trainable,
        freeze=(),
        dtype=torch.float32,
        frozen_dtype=torch.float32,
        device=device,
        seed=0,
    )


def engine_of(built: BuiltModel) -> Engine:
    """Alone on a CPU, ZeRO 1 in fp32 (after ``vltrain.engine.start``)."""
    optim = OptimConfig(lr=1e-4, steps=1000)
    return build_engine(
        built.module,
        groups=parameter_groups(built.module.named_parameters(), part_of=part_of, config=optim),
        config=EngineConfig(zero_stage=1, dtype=Dtype.fp32),
        clip_norm=1.0,
        micro_batch_size=1,
        micro_batches_per_step=1,
        device=torch.device("cpu"),
    )


def manifest_of(built: BuiltModel, *, step: int) -> Manifest:
    """What a stage would write beside the tensors, less what no benchmark needs."""
    trained = {part_of(name) for name in built.trainable}
    return Manifest(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        step=step,
        finished=False,
        stage={"number": 1, "name": "benchmark", "trainable": sorted(trained)},
        run={"name": "benchmark", "dir": "", "wandb_id": None},
        config_digest="",
        model_digest="",
        tokenizer_digest="",
        image_token_id=built.config.image_token_id,
        geometry={},
        recipe_digest="",
        seed=0,
        cursor=None,
        chain_head="",
        counters={},
        parts={part: PartRecord(trained=part in trained, path=None, digest=None) for part in PARTS},
        params={
            name: ParamRecord(shape=tuple(p.shape), dtype="float32", part=part_of(name))
            for name, p in built.module.named_parameters()
            if name in built.trainable
        },
        world={"size": 1, "zero_stage": 1},
    )
