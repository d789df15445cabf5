"""Training state as fragments that know nothing of ranks or ZeRO stages.

Out: for every trainable parameter the fp32 master weight and AdamW's two moments, as flat runs of
elements ``[offset, offset + count)`` of that parameter, each run on exactly one rank; and
parameters that are frozen inside the engine's module, for the parts that asked for them. In: the
same, through a ``read(name, kind, offset, count)`` that finds any run, so a checkpoint of N
processes and one ZeRO stage loads into any other. Cost: no collective and no full copy on export; a
rank reads only its own elements on import. Rejected: DeepSpeed's own checkpoints, which load at
another world size only through a conversion step and not at all across ZeRO 1 to 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import nn

from vltrain import distributed
from vltrain.optim.adamw import Bf16MomentsAdamW


class FragmentKind(str, Enum):
    """What a fragment is of. ``frozen``: the value of a parameter that does not train."""

    master = "master"
    exp_avg = "exp_avg"
    exp_avg_sq = "exp_avg_sq"
    frozen = "frozen"


MOMENTS = (FragmentKind.exp_avg, FragmentKind.exp_avg_sq)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fragment:
    """Elements [offset, offset + values.numel()) of a flattened parameter. values: 1-D, on the CPU;
    fp32, or the parameter's own dtype where kind is frozen."""

    name: str
    kind: FragmentKind
    offset: int
    values: torch.Tensor


Read = Callable[[str, FragmentKind, int, int], torch.Tensor | None]
"""(name, kind, offset, count) -> 1-D tensor of ``count`` elements; None leaves what is there."""


@dataclass(frozen=True, slots=True)
class _Held:
    """Where this rank holds a run of one parameter: ``flat[start : start + count]`` is the master
    of the parameter's elements from ``offset`` on, and the optimizer's state is kept under
    ``flat``."""

    name: str
    offset: int
    flat: torch.Tensor
    start: int
    count: int


def _held(engine: Any, names: dict[int, str]) -> Iterator[_Held]:
    """This rank's runs of the trainable parameters, in module order."""
    optimizer = engine.optimizer
    for index, parameter in enumerate(p for p in engine.module.parameters() if p.requires_grad):
        name = names[id(parameter)]
        if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
            group, start, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
            size = parameter.partition_numel()
            offset = optimizer._get_param_partition_rank(parameter) * size
            count = max(0, min(size, parameter.ds_numel - offset))
            flat = optimizer.fp32_partitioned_groups_flat[group]
        elif isinstance(optimizer, DeepSpeedZeroOptimizer | BF16_Optimizer):
            mapping = parameter._hp_mapping
            if mapping is None:
                continue
            flats = (
                optimizer.fp32_groups_flat_partition
                if isinstance(optimizer, BF16_Optimizer)
                else optimizer.single_partition_of_fp32_groups
            )
            flat = flats[mapping.param_group_index]
            start, count = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
            offset = mapping.lp_fragment_address.start
        else:
            # Every rank holds all: each writes its own share of the parameters.
            mine = index % distributed.world_size() == distributed.rank()
            flat, start, offset = parameter, 0, 0
            count = parameter.numel() if mine else 0
        if count > 0:
            yield _Held(name, offset, flat, start, count)


def _base_optimizer(engine: Any) -> torch.optim.Optimizer:
    wrapped = getattr(engine.optimizer, "optimizer", engine.optimizer)
    assert isinstance(wrapped, torch.optim.Optimizer)
    return wrapped


def names_by_id(module: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in module.named_parameters()}


def export_fragments(engine: Any, *, frozen: Callable[[str], bool]) -> Iterator[Fragment]:
    """This rank's fragments, one at a time (each a copy on the CPU). ``frozen(name)``: whether the
    value of a parameter that does not train is to be exported too."""
    names = names_by_id(engine.module)
    states = _base_optimizer(engine).state
    with torch.no_grad():
        for held in _held(engine, names):
            for kind in (FragmentKind.master, *MOMENTS):
                source = (
                    held.flat if kind is FragmentKind.master else states[held.flat].get(kind.value)
                )
                if source is None:  # before the first update AdamW has no moments: they are zero
                    values = torch.zeros(held.count)
                else:
                    run = source.detach().reshape(-1).narrow(0, held.start, held.count)
                    values = run.to("cpu", torch.float32, copy=True)
                yield Fragment(name=held.name, kind=kind, offset=held.offset, values=values)
        for index, (name, parameter) in enumerate(engine.module.named_parameters()):
            if not parameter.requires_grad and frozen(name):
                yield from _frozen_fragment(name, parameter, index=index)


def _frozen_fragment(name: str, parameter: Any, *, index: int) -> Iterator[Fragment]:
    if hasattr(parameter, "ds_tensor"):
        size = parameter.partition_numel()
        offset = distributed.rank() * size
        count = max(0, min(size, parameter.ds_numel - offset))
        run = parameter.ds_tensor.detach().reshape(-1)[:count]
    else:
        mine = index % distributed.world_size() == distributed.rank()
        offset, run = 0, parameter.detach().reshape(-1)[: parameter.numel() if mine else 0]
    if run.numel():
        yield Fragment(
            name=name, kind=FragmentKind.frozen, offset=offset, values=run.to("cpu", copy=True)
        )


def updates_made(engine: Any) -> int:
    """Updates that the optimizer has made: AdamW's own count, which its bias correction needs."""
    counts = {int(s["step"]) for s in _base_optimizer(engine).state.values() if "step" in s}
    assert len(counts) <= 1, f"optimizer states disagree about the step: {sorted(counts)}"
    return counts.pop() if counts else 0


def import_state(engine: Any, read: Read, *, updates: int | None) -> None:
    """Load masters and, unless ``updates`` is None, AdamW's moments and count (collective).

    With ``updates`` None only weights are loaded, as when a stage starts from its predecessor. The
    working copies (bf16, or the shares of other ranks) are refreshed from the masters afterwards.
    """
    names = names_by_id(engine.module)
    with torch.no_grad():
        for held in _held_for_import(engine, names):
            target = held.flat.data.view(-1).narrow(0, held.start, held.count)
            master = read(held.name, FragmentKind.master, held.offset, held.count)
            if master is not None:
                target.copy_(master)
            if updates is not None:
                state = _state_of(engine, held.flat, updates=updates)
                for kind in MOMENTS:
                    values = read(held.name, kind, held.offset, held.count)
                    assert values is not None, f"no {kind.value} of {held.name}"
                    state[kind.value].view(-1).narrow(0, held.start, held.count).copy_(values)
        _refresh_working_copies(engine)


def _held_for_import(engine: Any, names: dict[int, str]) -> Iterator[_Held]:
    """As ``_held``, but without ZeRO every rank needs everything."""
    if isinstance(engine.optimizer, torch.optim.Optimizer):
        for parameter in engine.module.parameters():
            if parameter.requires_grad:
                yield _Held(names[id(parameter)], 0, parameter, 0, parameter.numel())
    else:
        yield from _held(engine, names)


def _state_of(engine: Any, flat: torch.Tensor, *, updates: int) -> dict[str, torch.Tensor]:
    """AdamW's state of ``flat``, made as AdamW would make it at its first update."""
    optimizer = _base_optimizer(engine)
    state = optimizer.state[flat]
    if not state:
        fused = bool(optimizer.defaults.get("fused"))
        state["step"] = torch.zeros((), device=flat.device if fused else "cpu")
        dtype = torch.bfloat16 if isinstance(optimizer, Bf16MomentsAdamW) else flat.dtype
        for kind in MOMENTS:
            state[kind.value] = torch.zeros_like(flat, dtype=dtype)
    state["step"].fill_(float(updates))
    return state


def _refresh_working_copies(engine: Any) -> None:
    optimizer = engine.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        optimizer._partition_all_parameters()
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif isinstance(optimizer, DeepSpeedZeroOptimizer | BF16_Optimizer):
        optimizer.update_lp_params()
