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

from vltrain.errors import ConfigError
from vltrain.models.adaptor import AnyAdaptor, HybridAdaptor, build_adaptor
from vltrain.models.config import AdaptorKind, ModelConfig
from vltrain.models.language import LanguageModel
from vltrain.models.model import VisionLanguageModel
from vltrain.models.moe_language import MoeLanguageModel
from vltrain.models.moe_model import MoeVisionLanguageModel
from vltrain.models.trainable import PARTS, check_parts, mark_trainable, part_of, parts_of
from vltrain.models.vision import TOWERS, FrozenTowers, SamTower, SiglipTower
from vltrain.models.vl2_check import check_experts, check_tiles

Keep = Callable[[nn.Parameter], None]
"""What is done with a parameter of the engine's module once it has its value (collective)."""


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

    def tower(self, part: str) -> nn.Module:
        """A vision tower, wherever it lives."""
        home = self.frozen if hasattr(self.frozen, part) else self.module
        return home.get_submodule(part)

    def part_state(self, part: str) -> dict[str, Tensor]:
        """The parameters of one part under their full names (no buffers: none of ours is saved)."""
        return {n: p.detach() for n, p in self.named_parameters() if part_of(n) == part}

    def fill(self, name: str, tensor: Tensor) -> None:
        """Give a parameter its value, copied and cast to its type (every rank, in the same
        order)."""
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
    device = torch.device(device)
    towers: dict[str, nn.Module] = {}
    for part in TOWERS:
        if part in parts_of(config):
            part_dtype = dtype if part in trainable else frozen_dtype
            with _construction(part, seed, dtype=part_dtype, device=device, unfilled=unfilled):
                towers[part] = _build_tower(config, part=part)
    with _construction("adaptor", seed, dtype=dtype, device=device, unfilled=unfilled):
        adaptor = build_adaptor(config)
    with _construction("language", seed, dtype=dtype, device=device, unfilled=unfilled):
        moe = config.language.moe is not None
        language = MoeLanguageModel(config) if moe else LanguageModel(config)
    if not {"sam", "adaptor"} & set(unfilled):
        _start_neck_from_sam(adaptor, towers.get("sam"))
    trained = {part: tower for part, tower in towers.items() if part in trainable}
    module = _module(config, language=language, adaptor=adaptor, towers=trained)
    names = mark_trainable(module, parts=trainable, freeze=freeze)
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
    adaptor: AnyAdaptor,
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


def check_model(config: ModelConfig) -> None:
    """Raises ConfigError where the parts of ``config`` do not fit together."""
    hybrid = config.adaptor.kind == AdaptorKind.hybrid_split
    if hybrid != (config.sam is not None):
        have = "has a SAM tower" if config.sam is not None else "has no SAM tower"
        raise ConfigError(
            f"model {config.name!r} {have} but model.adaptor.kind is "
            f"{config.adaptor.kind.value!r}: hybrid_split reads SAM and SigLIP, mlp SigLIP alone"
        )
    if config.image_token_id >= config.language.vocab_size:
        raise ConfigError(
            f"model.image_token_id is {config.image_token_id} but model.language.vocab_size is "
            f"{config.language.vocab_size}: the image token needs a row of the embedding"
        )
    if config.adaptor.train_sam_neck and config.sam is None:
        raise ConfigError(
            f"model.adaptor.train_sam_neck needs a SAM tower; {config.name!r} has none"
        )
    widths = {"siglip": config.siglip, "language": config.language}
    for part, sizes in (widths | ({"sam": config.sam} if config.sam is not None else {})).items():
        if sizes.width % (2 * sizes.heads) != 0:
            raise ConfigError(
                f"model.{part}.width is {sizes.width} and model.{part}.heads is {sizes.heads}: "
                "expected a width that divides into heads of an even size"
            )
    check_experts(config.language)
    check_tiles(config)
    if config.sam is not None:
        layers = config.sam.global_layers
        if not layers or not all(0 <= layer < config.sam.layers for layer in layers):
            raise ConfigError(
                f"model.sam.global_layers is {layers}: expected one number or more, each from 0 "
                f"to {config.sam.layers - 1} (model.sam.layers is {config.sam.layers})"
            )


def _start_neck_from_sam(adaptor: nn.Module, sam: nn.Module | None) -> None:
    """Copy SAM's own neck into the adaptor's second neck: how the released code starts it."""
    if not isinstance(adaptor, HybridAdaptor) or sam is None:
        return
    assert isinstance(sam, SamTower)
    neck = adaptor.sam_neck if sam.neck is None else sam.neck
    assert neck is not None, "SAM's own neck is in the tower or in the adaptor"
    with torch.no_grad():
        for name, target in adaptor.neck.named_parameters():
            target.copy_(neck.get_parameter(name))


def _build_tower(config: ModelConfig, *, part: str) -> nn.Module:
    if part == "siglip":
        return SiglipTower(config.siglip)
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
        torch.manual_seed(seed * len(PARTS) + PARTS.index(part))
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


def _without_value(module: nn.Module, name: str, parameter: nn.Parameter) -> Any:
    """The parameter that is registered in place of ``parameter``, whose memory is free again at
    once (torch's annotations know only of hooks that give nothing)."""
    return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
