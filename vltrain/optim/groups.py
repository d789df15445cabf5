"""Parameter groups: which parameter is updated with what.

In: the module's named parameters and the optimizer config. Out: one group per part (two where
weight decay is on), each a plain dict that torch's optimizers take, with the part's name under
``part`` so that the engine can set its learning rate. Rejected: groups by name pattern in the
config, which a renamed module would silently empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from vltrain.errors import ConfigError
from vltrain.optim.config import OptimConfig


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    part_of: Callable[[str], str],
    config: OptimConfig,
) -> list[dict[str, Any]]:
    """Group the trainable parameters: exactly those with ``requires_grad``, each in one group.

    Each group has ``params``, ``names``, ``part``, ``weight_decay``, ``betas``, ``eps``,
    ``moments`` and ``lr`` (0: the engine sets it before every update). Where weight decay is on,
    tensors of one dimension (biases, norms, alpha) are in a group of their own without it. Raises
    ConfigError when nothing trains or ``optim.parts`` names a part that does not train.
    """
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        part = part_of(name)
        decay = _weight_decay(config, part=part)
        whole_shape = getattr(parameter, "ds_shape", parameter.shape)  # partitioned, it is flat
        decays = decay > 0 and len(whole_shape) > 1
        group = groups.setdefault(
            (part, decays),
            {
                "params": [],
                "names": [],
                "part": part,
                "weight_decay": decay if decays else 0.0,
                "betas": (config.beta1, config.beta2),
                "eps": config.eps,
                "moments": config.moments,
                "lr": 0.0,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise ConfigError(
            "No parameter trains: every parameter of the module is frozen. "
            "Name at least one part in the stage's `trainable`."
        )
    _check_parts(config, training={part for part, _ in groups})
    return [groups[key] for key in sorted(groups)]


def _weight_decay(config: OptimConfig, *, part: str) -> float:
    own = config.parts.get(part)
    if own is not None and own.weight_decay is not None:
        return own.weight_decay
    return config.weight_decay


def _check_parts(config: OptimConfig, *, training: set[str]) -> None:
    unknown = sorted(set(config.parts) - training)
    if unknown:
        raise ConfigError(
            f"optim.parts names {', '.join(unknown)}, which does not train here. "
            f"Parts that train: {', '.join(sorted(training))}."
        )
