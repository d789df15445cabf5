"""The gradients between a step's last backward and its update: their norm, and dropping them.

DeepSpeed keeps them in four ways (by ZeRO stage and dtype) and checks them for non-finite values in
four ways, one of them not at all. Here is one answer for all: this rank's share of the squared
global norm, before the update, and a discard after which the next step starts clean. The attributes
read are DeepSpeed's own (0.19.8); the engine's tests hold them for every kind. Rejected:
DeepSpeed's norm functions, which say -1 for infinity and move between releases. Cost: one pass over
a rank's share of the gradients, no collective.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from vltrain import distributed


def square_share(deepspeed_engine: Any) -> torch.Tensor:
    """This rank's share of the squared L2 norm of the averaged gradients before clipping, 0-d
    float64: summed over ranks it is the whole. Call after the last backward of a step."""
    optimizer = deepspeed_engine.optimizer
    if isinstance(optimizer, BF16_Optimizer):
        return _squares(optimizer.fp32_groups_gradient_flat_partition)
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        offloaded = bool(optimizer.offload_optimizer)
    elif isinstance(optimizer, DeepSpeedZeroOptimizer):
        offloaded = bool(optimizer.cpu_offload)
    else:  # no ZeRO: every rank holds all of them
        gradients = [p.grad for g in optimizer.param_groups for p in g["params"]]
        return _squares(gradients) / distributed.world_size()
    if offloaded:  # taken before the copy to the host, of this rank's runs alone
        norms = [torch.as_tensor(n).double() for n in optimizer.norm_for_param_grads.values()]
        return torch.stack([n.square() for n in norms]).sum() if norms else _squares([])
    return _squares([g for group in optimizer.averaged_gradients.values() for g in group or ()])


def _squares(gradients: list[Any]) -> torch.Tensor:
    present = [g for g in gradients if g is not None and g.numel()]
    if not present:
        return torch.zeros((), dtype=torch.float64)
    return torch.nn.utils.get_total_norm(present).double().square()


def discard(deepspeed_engine: Any) -> None:
    """Forget this step's gradients, so that the next backward starts from none."""
    optimizer = deepspeed_engine.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        _wait_for_copies()
        optimizer._pre_step()
        optimizer._partition_all_parameters()
        optimizer._overflow_clean_up(optimizer.loss_scale)
    elif isinstance(optimizer, DeepSpeedZeroOptimizer):
        _discard_zero_1_or_2(optimizer)
    elif isinstance(optimizer, BF16_Optimizer):
        optimizer.zero_grad()
    else:
        deepspeed_engine.zero_grad()


def _discard_zero_1_or_2(optimizer: Any) -> None:
    _wait_for_copies()
    # Back to the count that the optimizer starts with, as its own step() does.
    optimizer.micro_step_id = -1
    optimizer.zero_grad(set_to_none=True)
    optimizer._release_preflattened_grad_buffers()
    if optimizer.cpu_offload:
        optimizer._offload_accumulated_param_ids = set()
        optimizer.reset_cpu_buffers()
    # With offload too: DeepSpeed's own overflow path forgets bf16's fp32 sums there, and one
    # non-finite step would make every later one non-finite.
    for kept in (optimizer.averaged_gradients, optimizer.all_grad_tensors):
        for group in list(kept):
            kept[group] = None


def _wait_for_copies() -> None:
    """Gradients on their way to the host must have arrived before their buffers are reused."""
    accelerator = get_accelerator()
    assert accelerator is not None
    accelerator.synchronize()
