"""A published vision tower's weights, read by transformers itself.

In: a directory of CLIP, DINOv2 or the like: the tower alone, or inside a model with a text tower or
a classifier. Out: its tensors under our full names, every one accounted for. transformers renames
what older files call otherwise, which no table of ours could follow for every class. Cost: the
whole tower in memory (1.2 GB for ViT-L in fp32) while it is read.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from vltrain.errors import WeightsError
from vltrain.models.config import ModelConfig, VitConfig
from vltrain.models.layouts import PublishedDirectory
from vltrain.models.vit import VitTower, vit_config


class PublishedVit:
    """As ``PublishedDirectory``, for the part ``vit``.

    Raises WeightsError where it is no directory of this tower.
    """

    def __init__(self, directory: Path, *, config: VitConfig) -> None:
        self.directory, self._config = directory, config
        path = directory / "config.json"
        if not path.is_file():
            raise WeightsError(
                f"{directory} is no published directory: it has no config.json. Expected what "
                "save_pretrained writes: config.json and the weights"
            )
        model_type = json.loads(path.read_text(encoding="utf-8")).get("model_type")
        family = config.model_type.removesuffix("_vision_model")
        if model_type not in (config.model_type, family):
            raise WeightsError(
                f"{directory} has model_type {model_type!r}, but model.vit.model_type is "
                f"{config.model_type!r}"
            )

    def tensors(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
        """(our full name, tensor as stored) of the tensors whose name is ``wanted``. One of another
        shape than the tower's is given without its values."""
        for name, tensor in self._state.items():
            if wanted(name):
                yield name, tensor

    def tensor(self, name: str) -> Tensor | None:
        """One tensor as stored, by our full name; None where the directory has none of it."""
        return self._state.get(name)

    @functools.cached_property
    def _state(self) -> dict[str, Tensor]:
        with torch.device("meta"):
            kind = type(VitTower(self._config, width=0).model)
        try:
            model, found = kind.from_pretrained(
                self.directory,
                config=vit_config(self._config),
                dtype="auto",
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            raise WeightsError(
                f"{self.directory} cannot be read as {kind.__name__}: {str(error).splitlines()[0]}"
            ) from error
        self._refuse_unknown(found["unexpected_keys"], model)
        state = {
            f"vit.model.{name}": tensor.detach() for name, tensor in model.state_dict().items()
        }
        for name in found["missing_keys"]:
            state.pop(f"vit.model.{name}", None)
        for name, stored, _ in found["mismatched_keys"]:
            state[f"vit.model.{name}"] = torch.empty(stored, device="meta")
        return state

    def _refuse_unknown(self, unexpected: set[str], model: torch.nn.Module) -> None:
        """What the files hold of the tower and the tower does not have; other parts of a larger
        model are left alone."""
        first_words = {name.partition(".")[0] for name, _ in model.named_parameters()}
        family = self._config.model_type.removesuffix("_vision_model")
        unknown = []
        for key in sorted(unexpected):
            name = key
            for prefix in ("vision_model.", f"{family}."):
                name = name.removeprefix(prefix)
            if name.partition(".")[0] in first_words and not name.endswith("position_ids"):
                unknown.append(key)
        if unknown:
            raise WeightsError(
                f"{self.directory} holds tensors that this tower does not have: "
                f"{', '.join(unknown[:10])}{' ...' if len(unknown) > 10 else ''}. Do "
                "model.vit.settings say what its config.json says?"
            )


def open_published(
    directory: Path, *, config: ModelConfig, part: str
) -> PublishedDirectory | PublishedVit:
    """A published directory, opened for ``part``. Raises WeightsError where it does not fit."""
    if part == "vit":
        assert config.vit is not None, "no vit in this model"
        return PublishedVit(directory, config=config.vit)
    return PublishedDirectory(directory, config=config)
