"""The model from its config: parts made, placed inside or outside the engine's module, and marked.

In: config, what trains, types, device, seed. Out: ``BuiltModel``, freshly initialised: the same
numbers on every rank (each part draws from its own seed, so none depends on which other parts
exist); on the meta device nothing is allocated or drawn. Weights are loaded afterwards by
``weights``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vltrain.models.adaptor import Adaptor
from vltrain.models.check import check_model
from vltrain.models.config import TOWERS, ModelConfig, Recompute
from vltrain.models.language import LanguageModel
from vltrain.models.model import VisionLanguageModel
from vltrain.models.recompute import recompute_layers
from vltrain.models.trainable import check_parts, mark_trainable, part_of, parts_of
from vltrain.models.vision import FrozenTowers, SamTower, SiglipTower
from vltrain.models.vit import VitTower, probe

_SEED_PLACES = {"sam": 0, "siglip": 1, "adaptor": 2, "language": 3, "vit": 2**32}
"""Which seed a part draws from, so that a part's numbers depend on no other part."""
_SEEDS_PER_RUN = 4


@dataclass(frozen=True, kw_only=True)
class BuiltModel:
    """module: what the engine wraps. frozen: the towers that do not train. trainable: the full
    names of the parameters that train, in the module's order; the optimizer's parameters must
    equal them."""

    config: ModelConfig
    module: VisionLanguageModel
    frozen: FrozenTowers
    trainable: tuple[str, ...]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter under its full name (``part.…``), wherever it lives."""
        yield from self.module.named_parameters()
        yield from self.frozen.named_parameters()

    def tower(self, part: str) -> nn.Module:
        """A vision tower, wherever it lives."""
        home = self.frozen if hasattr(self.frozen, part) else self.module
        return home.get_submodule(part)

    def part_state(self, part: str) -> dict[str, Tensor]:
        """The parameters of one part under their full names (no buffers: none of ours is saved)."""
        return {n: p.detach() for n, p in self.named_parameters() if part_of(n) == part}


def build_model(
    config: ModelConfig,
    *,
    trainable: Collection[str],
    freeze: Sequence[str],
    dtype: torch.dtype,
    frozen_dtype: torch.dtype,
    device: torch.device | str,
    seed: int,
) -> BuiltModel:
    """Build the model; see the module's docstring.

    trainable: part names. freeze: globs on full parameter names. dtype: of the engine's module;
    frozen_dtype: of the towers outside it. Raises ConfigError for unknown parts, patterns that
    match nothing, and configs whose parts do not fit together.
    """
    check_model(config)
    check_parts(config, parts=trainable)
    never_train: list[str] = []
    if config.vit is not None:  # first: what it draws must not depend on who looked at it before
        unused = probe(config.vit).unused
        never_train = [f"vit.{name}" for name in unused] if "vit" in trainable else []
    device = torch.device(device)
    towers: dict[str, nn.Module] = {}
    for part in TOWERS:
        if part in parts_of(config):
            part_dtype = dtype if part in trainable else frozen_dtype
            with _construction(part, seed=seed, dtype=part_dtype, device=device):
                towers[part] = _build_tower(config, part=part)
            if part in trainable:
                how = Recompute(getattr(config.activation_checkpointing, part))
                recompute_layers(towers[part], how=how, part=part)
    with _construction("adaptor", seed=seed, dtype=dtype, device=device):
        adaptor = Adaptor(config)
    with _construction("language", seed=seed, dtype=dtype, device=device):
        language = LanguageModel(config)
    start_neck_from_sam(adaptor, towers.get("sam"))
    module = VisionLanguageModel(
        language=language,
        adaptor=adaptor,
        towers={part: tower for part, tower in towers.items() if part in trainable},
    )
    names = mark_trainable(module, parts=trainable, freeze=[*freeze, *never_train])
    frozen = FrozenTowers(
        config,
        towers={part: tower for part, tower in towers.items() if part not in trainable},
        trained=tuple(part for part in towers if part in trainable),
        pixels_dtype=dtype,
        device=device,
    )
    return BuiltModel(config=config, module=module, frozen=frozen, trainable=names)


def start_neck_from_sam(adaptor: nn.Module, sam: nn.Module | None) -> None:
    """Copy SAM's own neck into the adaptor's second neck: how the released code starts it. Without
    a SAM there is none."""
    if sam is None:
        return
    assert isinstance(sam, SamTower)
    assert isinstance(adaptor, Adaptor)
    neck = adaptor.sam_neck if sam.neck is None else sam.neck
    assert neck is not None, "SAM's own neck is in the tower or in the adaptor"
    with torch.no_grad():
        for name, target in adaptor.neck.named_parameters():
            target.copy_(neck.get_parameter(name))


def _build_tower(config: ModelConfig, *, part: str) -> nn.Module:
    if part == "siglip":
        assert config.siglip is not None
        return SiglipTower(config.siglip)
    if part == "vit":
        assert config.vit is not None
        return VitTower(config.vit, width=probe(config.vit).width)
    assert config.sam is not None
    return SamTower(config.sam, with_neck=not config.adaptor.train_sam_neck)


@contextlib.contextmanager
def _construction(
    part: str, *, seed: int, dtype: torch.dtype, device: torch.device
) -> Iterator[None]:
    """Parameters are made on ``device`` in ``dtype``, drawn from the part's own seed; the
    caller's random state and default type are left as they were."""
    default = torch.get_default_dtype()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(seed * _SEEDS_PER_RUN + _SEED_PLACES[part])
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(default)
