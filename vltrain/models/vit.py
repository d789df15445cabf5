"""Any vision transformer of transformers' as a tower: the part ``vit``.

In: ``VitConfig``. Out: a tower that gives the states of its patches, (n, grid^2, width); what
stands before them (class token, registers) is left out. What a class really gives is found out
once by running it on the meta device, where nothing is computed or allocated: the states' shape,
the operations of a pass, and which of its parameters no gradient reaches (poolers, masks, a last
norm that is not used). Those are kept, so that a published directory loads whole, but never train.

Cost of the first look at a class: seconds, for building it without memory. Rejected: a table of
known towers, which would be wrong for the next one.
"""

from __future__ import annotations

import functools
import inspect
import json
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from vltrain.errors import ConfigError
from vltrain.models.config import VitConfig
from vltrain.processing.geometry import patch_grid

MOST_OTHER_TOKENS = 16
"""Class tokens and registers that may stand before the patches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VitFacts:
    """width: of a state. flops: one picture through the tower, forward. unused: parameters, by the
    tower's own names, that its states do not depend on."""

    width: int
    flops: float
    unused: tuple[str, ...]


class VitTower(nn.Module):
    """``model`` is transformers' own module; ``width`` is of its states (see ``probe``)."""

    def __init__(self, config: VitConfig, *, width: int) -> None:
        super().__init__()
        self._width = width
        self.model = _built(config, dtype=torch.get_default_dtype())
        self.state = config.state
        self.patches = patch_grid(config.image_size, patch_size=config.patch_size) ** 2
        accepted = inspect.signature(self.model.forward).parameters
        # Without it CLIP and others refuse a view of another size than their position table's.
        self.keywords = (
            {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in accepted else {}
        )

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """pixel_values (n, 3, s, s) -> vit (n, tokens, width)."""
        return {"vit": self.states(pixel_values)[:, -self.patches :]}

    def feature_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one picture's features."""
        return {"vit": (self.patches, self._width)}

    def states(self, pixel_values: Tensor) -> Tensor:
        """As the class gives them, (n, other tokens + patches, width)."""
        inner = self.state != -1
        output: ModelOutput = self.model(pixel_values, output_hidden_states=inner, **self.keywords)
        return output["hidden_states"][self.state] if inner else output["last_hidden_state"]


def vit_config(config: VitConfig) -> PretrainedConfig:
    """transformers' record of the tower. Raises ConfigError for an unknown model_type or
    settings that it refuses."""
    try:
        return AutoConfig.for_model(config.model_type, **config.settings)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"model.vit.model_type={config.model_type!r} with model.vit.settings="
            f"{dict(config.settings)} is nothing that transformers knows: "
            f"{str(error).splitlines()[0]}"
        ) from error


def probe(config: VitConfig) -> VitFacts:
    """What the tower gives and needs. Raises ConfigError where it does not give a state for every
    patch."""
    described = {
        "model_type": config.model_type,
        "settings": config.settings,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "state": config.state,
    }
    return _probe(json.dumps(described, sort_keys=True))


@functools.cache
def _probe(described: str) -> VitFacts:
    config = VitConfig(**json.loads(described))
    grid = patch_grid(config.image_size, patch_size=config.patch_size)
    said = f"model.vit ({config.model_type}, view {config.image_size}, patch {config.patch_size})"
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        tower = VitTower(config, width=0)  # not known yet
        pixels = torch.zeros(1, 3, config.image_size, config.image_size)
        try:
            states = tower.states(pixels)
        except (ValueError, RuntimeError, KeyError, IndexError) as error:
            raise ConfigError(
                f"{said} cannot be run: {str(error).splitlines()[0]}. Is the view one that this "
                "class takes?"
            ) from error
    if states.dim() != 3 or not 0 <= states.shape[1] - grid * grid <= MOST_OTHER_TOKENS:
        raise ConfigError(
            f"{said} gives states of shape {tuple(states.shape[1:])}, expected {grid * grid} "
            "patches (and a few other tokens) by the width: a tower with one state for every patch "
            "is needed, and model.vit.patch_size must be its own"
        )
    names, parameters = zip(*tower.named_parameters(), strict=True)
    gradients = torch.autograd.grad(states.sum(), parameters, allow_unused=True)
    unused = tuple(n for n, g in zip(names, gradients, strict=True) if g is None)
    return VitFacts(
        width=states.shape[-1],
        flops=float(counter.get_total_flops()),
        unused=unused,
    )


def _built(config: VitConfig, *, dtype: torch.dtype) -> PreTrainedModel:
    record = vit_config(config)
    try:
        return AutoModel.from_config(record, dtype=dtype)
    except (ValueError, AttributeError) as error:
        raise ConfigError(
            f"model.vit.model_type={config.model_type!r} is no vision tower of transformers': "
            f"{str(error).splitlines()[0]}"
        ) from error
