"""What trains: parts by name, minus freeze patterns. Unknown names are errors, never silence.

In: the built modules, part names and glob patterns on full parameter names
(``siglip.encoder.layers.0.*``). Out: ``requires_grad`` set on every parameter, and counts to
print and record.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from vltrain.errors import ConfigError
from vltrain.models.config import PARTS, ModelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class PartCount:
    """Parameters of one part (numbers, not bytes)."""

    part: str
    parameters: int
    trainable: int


def part_of(name: str) -> str:
    """The part that a parameter belongs to: the first word of its full name."""
    part = name.partition(".")[0]
    assert part in PARTS, f"parameter {name!r} belongs to no part"
    return part


def parts_of(config: ModelConfig) -> tuple[str, ...]:
    """The parts that this model has (SigLIP alone has no ``sam``)."""
    return config.parts


def check_parts(config: ModelConfig, *, parts: Collection[str]) -> None:
    """Raises ConfigError for a part that this model does not have, listing those that it has."""
    unknown = sorted(set(parts) - set(parts_of(config)))
    if unknown:
        raise ConfigError(
            f"trainable names {', '.join(map(repr, unknown))}, but the parts of model "
            f"{config.name!r} are {', '.join(parts_of(config))}"
        )


def mark_trainable(
    module: nn.Module, *, parts: Collection[str], freeze: Sequence[str]
) -> tuple[str, ...]:
    """Set ``requires_grad`` on every parameter of ``module`` (its children are parts).

    A parameter trains if its part is in ``parts`` and no pattern of ``freeze`` matches its name.
    Returns the names that train. Raises ConfigError for a pattern that matches no parameter of the
    trainable parts, and for a part that patterns freeze altogether.
    """
    names = [name for name, _ in module.named_parameters() if part_of(name) in parts]
    for pattern in freeze:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"freeze pattern {pattern!r} matches no parameter of the trainable parts "
                f"({', '.join(sorted(parts))}). Patterns are globs on full names, such as "
                f"{', '.join(_examples(names))}"
            )
    trainable = {n for n in names if not any(fnmatchcase(n, pattern) for pattern in freeze)}
    for part in parts:
        if not any(part_of(name) == part for name in trainable):
            raise ConfigError(
                f"part {part!r} is trainable, but the freeze patterns {list(freeze)} freeze all of "
                f"it: take it out of trainable instead"
            )
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trainable)
    return tuple(name for name, _ in module.named_parameters() if name in trainable)


def describe(modules: Iterable[nn.Module]) -> tuple[PartCount, ...]:
    """Counts per part over ``modules`` (the trained module and the frozen towers), in ``PARTS``
    order.

    Counts are of whole parameters, also where the engine has partitioned them (``ds_numel``).
    """
    total = dict.fromkeys(PARTS, 0)
    trainable = dict.fromkeys(PARTS, 0)
    for module in modules:
        for name, parameter in module.named_parameters():
            count = getattr(parameter, "ds_numel", parameter.numel())
            total[part_of(name)] += count
            trainable[part_of(name)] += count if parameter.requires_grad else 0
    return tuple(
        PartCount(part=part, parameters=total[part], trainable=trainable[part])
        for part in PARTS
        if total[part] > 0
    )


def _examples(names: Sequence[str]) -> list[str]:
    """A few names to learn the spelling from, far apart: of six groups by their first three
    words."""
    first_of_group = {".".join(name.split(".")[:3]): name for name in reversed(names)}
    groups = sorted(first_of_group.values())
    return groups[:: -(-len(groups) // 6)]
