"""The model from its config: parts made, placed inside or outside the engine's module, and marked.

In: config, what trains, types, device, seed. Out: ``BuiltModel``, freshly initialised: the same
numbers on every rank (each part draws from its own seed, so none depends on which other parts
exist); on the meta device nothing is allocated or drawn. Parts whose weights will be loaded
(``weights``) are built without values, and each parameter is handed to ``keep`` as soon as it has
one: where that leaves a rank its share alone, no rank ever holds such a part whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from vltrain.models.adaptor import Adaptor, build_adaptor
from vltrain.models.check import check_model
from vltrain.models.config import TOWERS, ModelConfig, Recompute
from vltrain.models.language import LanguageModel
from vltrain.models.model import VisionLanguageModel
from vltrain.models.moe_language import MoeLanguageModel
from vltrain.models.moe_model import MoeVisionLanguageModel
from vltrain.models.recompute import recompute_layers
from vltrain.models.router_balance import is_correction
from vltrain.models.tile_adaptor import TileAdaptor
from vltrain.models.trainable import check_parts, mark_trainable, part_of, parts_of
from vltrain.models.vision import FrozenTowers, SamTower, SiglipTower
from vltrain.models.vit import VitTower, probe

Keep = Callable[[nn.Parameter], None]
"""What is done with a parameter of the engine's module once it has its value (collective)."""

_SEED_PLACES = {"sam": 0, "siglip": 1, "adaptor": 2, "language": 3, "vit": 2**32}
"""Which seed a part draws from, so that a part's numbers depend on no other part."""
_SEEDS_PER_RUN = 4


def kept_whole(parameter: nn.Parameter) -> None:
    """Every rank keeps all of it."""


@dataclass(frozen=True, kw_only=True)
class BuiltModel:
    """module: what the engine wraps. frozen: the towers that do not train. trainable: the full
    names of the parameters that train, in the module's order; the optimizer's parameters must
    equal them. device: of the values."""

    config: ModelConfig
    module: VisionLanguageModel
    frozen: FrozenTowers
    trainable: tuple[str, ...]
    device: torch.device
    keep: Keep

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter under its full name (``part.…``), wherever it lives."""
        yield from self.module.named_parameters()
        yield from self.frozen.named_parameters()

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Everything that makes the model what it is: the parameters, and the corrections of the
        routers, which are none."""
        yield from self.named_parameters()
        yield from self._corrections()

    def _corrections(self) -> Iterator[tuple[str, Tensor]]:
        language = self.module.language
        if isinstance(language, MoeLanguageModel):
            yield from language.balance.named()

    def tower(self, part: str) -> nn.Module:
        """A vision tower, wherever it lives."""
        home = self.frozen if hasattr(self.frozen, part) else self.module
        return home.get_submodule(part)

    def part_state(self, part: str) -> dict[str, Tensor]:
        """The tensors of one part under their full names (no buffers: none of ours is saved)."""
        return {n: t.detach() for n, t in self.named_tensors() if part_of(n) == part}

    def fill(self, name: str, tensor: Tensor) -> None:
        """Give one of ``named_tensors`` its value, copied and cast to its type (every rank, in the
        same order)."""
        if is_correction(name):
            dict(self._corrections())[name].copy_(tensor)
            return
        inside = not hasattr(self.frozen, part_of(name))
        path, _, leaf = name.rpartition(".")
        owner = (self.module if inside else self.frozen).get_submodule(path)
        parameter = owner.get_parameter(leaf)
        if not parameter.is_meta:
            with torch.no_grad():
                parameter.copy_(tensor)
            return
        value = tensor.to(self.device, parameter.dtype, copy=True).contiguous()
        filled = nn.Parameter(value, requires_grad=parameter.requires_grad)
        setattr(owner, leaf, filled)
        if inside:
            self.keep(filled)

    def keep_rest(self, parts: Collection[str]) -> None:
        """Hand the parameters of parts that were built with values to ``keep`` (every rank)."""
        for name, parameter in list(self.module.named_parameters()):
            assert not parameter.is_meta, f"{name} never got a value"
            if part_of(name) in parts:
                self.keep(parameter)


def build_model(
    config: ModelConfig,
    *,
    trainable: Collection[str],
    freeze: Sequence[str],
    dtype: torch.dtype,
    frozen_dtype: torch.dtype,
    device: torch.device | str,
    seed: int,
    unfilled: Collection[str] = (),
    keep: Keep = kept_whole,
) -> BuiltModel:
    """Build the model; see the module's docstring.

    trainable: part names. freeze: globs on full parameter names. dtype: of the engine's module;
    frozen_dtype: of the towers outside it. unfilled: parts that ``BuiltModel.fill`` will give their
    values. Raises ConfigError for unknown parts, patterns that match nothing, and configs whose
    parts do not fit together.
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
            with _construction(part, seed, dtype=part_dtype, device=device, unfilled=unfilled):
                towers[part] = _build_tower(config, part=part)
            if part in trainable:
                how = Recompute(getattr(config.activation_checkpointing, part))
                recompute_layers(towers[part], how=how, part=part)
    with _construction("adaptor", seed, dtype=dtype, device=device, unfilled=unfilled):
        adaptor = build_adaptor(config)
    with _construction("language", seed, dtype=dtype, device=device, unfilled=unfilled):
        moe = config.language.moe is not None
        language = MoeLanguageModel(config) if moe else LanguageModel(config)
    if not {"sam", "adaptor"} & set(unfilled):
        _start_neck_from_sam(adaptor, towers.get("sam"))
    trained = {part: tower for part, tower in towers.items() if part in trainable}
    module = _module(config, language=language, adaptor=adaptor, towers=trained)
    names = mark_trainable(module, parts=trainable, freeze=[*freeze, *never_train])
    frozen = FrozenTowers(
        config,
        towers={part: tower for part, tower in towers.items() if part not in trainable},
        trained=tuple(part for part in towers if part in trainable),
        pixels_dtype=dtype,
        device=device,
    )
    return BuiltModel(
        config=config, module=module, frozen=frozen, trainable=names, device=device, keep=keep
    )


def _module(
    config: ModelConfig,
    *,
    language: LanguageModel | MoeLanguageModel,
    adaptor: Adaptor | TileAdaptor,
    towers: dict[str, nn.Module],
) -> VisionLanguageModel:
    if isinstance(language, LanguageModel):
        return VisionLanguageModel(language=language, adaptor=adaptor, towers=towers)
    return MoeVisionLanguageModel(
        language=language,
        adaptor=adaptor,
        towers=towers,
        penalty_weight=config.router.penalty_weight,
    )


def _start_neck_from_sam(adaptor: nn.Module, sam: nn.Module | None) -> None:
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
    part: str,
    seed: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    unfilled: Collection[str],
) -> Iterator[None]:
    """Parameters are made on ``device`` in ``dtype``, drawn from the part's own seed, or on the
    meta device where the part is ``unfilled`` (its buffers have values all the same); the caller's
    random state and default type are left as they were."""
    default = torch.get_default_dtype()
    devices = [device] if device.type == "cuda" else []
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.device(device))
        if part in unfilled:
            stack.callback(register_module_parameter_registration_hook(_without_value).remove)
        torch.manual_seed(seed * _SEEDS_PER_RUN + _SEED_PLACES[part])
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


def _without_value(module: nn.Module, name: str, parameter: nn.Parameter) -> Any:
    """The parameter that is registered in place of ``parameter``, whose memory is free again at
    once (torch's annotations know only of hooks that give nothing)."""
    return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
