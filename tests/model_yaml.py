"""Configs of conf/model as tests use them: without a stage or data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from vltrain.models.config import ModelConfig

CONF = Path(__file__).resolve().parents[1] / "conf/model"


def model_config(name: str, *overrides: Mapping[str, Any]) -> ModelConfig:
    """conf/model/NAME.yaml with ``overrides`` laid over it; what it chooses of other groups is left
    out."""
    values = cast(DictConfig, OmegaConf.load(CONF / f"{name}.yaml"))
    values.pop("defaults", None)
    merged = OmegaConf.merge(OmegaConf.structured(ModelConfig), values, *overrides)
    return cast(ModelConfig, OmegaConf.to_object(merged))
