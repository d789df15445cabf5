"""A vision tower's published directory, described: its config.json and preprocessor_config.json.

In: a model config whose ``vit.path`` names a directory. Out: the config with the tower written out,
so that config.yaml of a run says all of it and no file is read again. Of a whole CLIP (or any model
with a ``vision_config``) the vision part is taken.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from vltrain.errors import ConfigError
from vltrain.models.config import ModelConfig, VitConfig

PROCESSOR = "preprocessor_config.json"


def with_described_vit(config: ModelConfig) -> ModelConfig:
    """``config`` with ``vit.path`` read; itself where there is none.

    What is set beside the path stands. Raises ConfigError where a file or value is missing.
    """
    if config.vit is None or config.vit.path is None:
        return config
    directory = Path(config.vit.path)
    weights = config.weights
    if weights.vit is None:
        weights = replace(weights, vit=str(directory))
    return replace(config, vit=_described(config.vit, directory), weights=weights)


def _described(vit: VitConfig, directory: Path) -> VitConfig:
    from transformers import AutoConfig  # here: it takes seconds, and most models name no path

    stored = _read(directory / "config.json")
    model_type = str(stored.get("model_type", ""))
    if isinstance(stored.get("vision_config"), dict):
        stored = stored["vision_config"]
        model_type = stored.get("model_type", f"{model_type}_vision_model")
    try:
        record = AutoConfig.for_model(model_type, **_without_names(stored))
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{directory / 'config.json'} describes no tower that transformers knows (model_type "
            f"{model_type!r}): {str(error).splitlines()[0]}"
        ) from error
    sizes = {name: getattr(record, name, None) for name in ("image_size", "patch_size")}
    for name, value in sizes.items():
        if not isinstance(value, int) and not getattr(vit, name):
            raise ConfigError(
                f"{directory / 'config.json'} has {name} {value!r}, expected one whole number: set "
                f"model.vit.{name}"
            )
    mean, std = _normalisation(vit, directory)
    return replace(
        vit,
        path=None,
        model_type=model_type,
        settings={**_without_names(record.to_diff_dict()), **sizes, **vit.settings},
        image_size=vit.image_size or sizes["image_size"],
        patch_size=vit.patch_size or sizes["patch_size"],
        mean=mean,
        std=std,
    )


def _normalisation(vit: VitConfig, directory: Path) -> tuple[list[float], list[float]]:
    """Mean and deviation of the tower's own processor."""
    if vit.mean and vit.std:
        return vit.mean, vit.std
    if not (directory / PROCESSOR).is_file():
        raise ConfigError(
            f"{directory} has no {PROCESSOR}, which says how the tower's pixels are normalised: "
            "set model.vit.mean and model.vit.std"
        )
    stored = _read(directory / PROCESSOR)
    for name in ("image_mean", "image_std"):
        if not isinstance(stored.get(name), list):
            raise ConfigError(
                f"{directory / PROCESSOR} has {name} {stored.get(name)!r}, expected a list of "
                "three numbers: set model.vit.mean and model.vit.std"
            )
    return vit.mean or stored["image_mean"], vit.std or stored["image_std"]


def _without_names(stored: dict[str, Any]) -> dict[str, Any]:
    """What shapes the tower: not what it is called, who wrote it, or its types."""
    names = ("model_type", "architectures", "transformers_version", "dtype", "torch_dtype")
    return {k: v for k, v in stored.items() if k not in names and not k.startswith("_")}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(
            f"model.vit.path: {path} does not exist; expected a published directory with "
            f"config.json and {PROCESSOR}"
        )
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    if not isinstance(stored, dict):
        raise ConfigError(f"{path} holds a {type(stored).__name__}, expected an object")
    return stored
