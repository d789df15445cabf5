"""A published vision tower's weights, read by transformers itself.

In: a directory of CLIP, DINOv2 or the like: the tower alone, or inside a model with a text tower or
a classifier. Out: its tensors under our full names, every one accounted for. transformers renames
what older files call otherwise, which no table of ours could follow for every class. Cost: the
whole tower in memory (1.2 GB for ViT-L in fp32) while it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from vltrain.errors import WeightsError
from vltrain.models.config import ModelConfig, VitConfig
from vltrain.models.published_directory import PublishedDirectory, read_settings
from vltrain.models.vit import VitTower, vit_config


class PublishedVit:
    """As ``PublishedDirectory``, for the part ``vit``. unknown: what the files hold of the tower
    and the tower does not have (without shapes); other parts of a larger model are left alone.
    incomplete: nothing, each tensor is stored as one.

    Raises WeightsError where it is no directory of this tower, or cannot be read.
    """

    def __init__(self, directory: Path, *, config: VitConfig) -> None:
        self.directory = directory
        self.settings = read_settings(directory)
        self.layout = str(self.settings.get("model_type"))
        family = config.model_type.removesuffix("_vision_model")
        if self.layout not in (config.model_type, family):
            raise WeightsError(
                f"{directory} has model_type {self.layout!r}, but model.vit.model_type is "
                f"{config.model_type!r}"
            )
        model, found = _loaded(directory, config)
        self._state = {f"vit.model.{name}": t.detach() for name, t in model.state_dict().items()}
        for name in found["missing_keys"]:
            self._state.pop(f"vit.model.{name}", None)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._state.items()}
        for name, stored, _ in found["mismatched_keys"]:
            self.shapes[f"vit.model.{name}"] = tuple(stored)
        first_words = {name.partition(".")[0] for name, _ in model.named_parameters()}
        self.incomplete: dict[str, tuple[str, ...]] = {}
        self.unknown: dict[str, tuple[int, ...]] = {
            key: ()
            for key in sorted(found["unexpected_keys"])
            if _inner_name(key, family).partition(".")[0] in first_words
            and not key.endswith("position_ids")  # a count from 0 that older files hold
        }

    def tensors(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
        """(our full name, tensor as stored) of the tensors whose name is ``wanted``."""
        for name, tensor in self._state.items():
            if wanted(name):
                yield name, tensor

    def tensor(self, name: str) -> Tensor:
        """One tensor as stored, by our full name (among ``shapes``)."""
        return self._state[name]


Published = PublishedDirectory | PublishedVit


def open_published(directory: Path, *, config: ModelConfig, part: str) -> Published:
    """A published directory, opened for ``part``. Raises WeightsError where it cannot be read."""
    if part == "vit":
        assert config.vit is not None, "no vit in this model"
        return PublishedVit(directory, config=config.vit)
    return PublishedDirectory(directory, config=config)


def _loaded(directory: Path, config: VitConfig) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The tower as transformers reads it, and its report."""
    with torch.device("meta"):
        kind = type(VitTower(config, width=0).model)
    try:
        loaded: Any = kind.from_pretrained(
            directory,
            config=vit_config(config),
            dtype="auto",
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        return loaded
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"{directory} cannot be read as {kind.__name__}: {str(error).splitlines()[0]}"
        ) from error


def _inner_name(key: str, family: str) -> str:
    """Without the name that a larger model gives the tower."""
    for prefix in ("vision_model.", f"{family}."):
        key = key.removeprefix(prefix)
    return key
