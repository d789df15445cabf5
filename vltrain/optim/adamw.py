"""AdamW as ``optim`` asks for it: torch's own, or one whose moments are kept in bf16.

In: parameter groups. Out: an optimizer over fp32 masters. ``moments=bf16`` takes 4 bytes of moments
a parameter where fp32 takes 8; the update is computed in fp32 and the moments are rounded after it,
to nearest. Cost: a chunk of elements at a time, in a dozen element-wise passes, where torch's fused
kernel makes one (it keeps moments in the parameters' own type only). A checkpoint holds moments as
fp32 either way. Rejected: DeepSpeed's ``bf16_optimizer_states``, which wants masters and gradients
in bf16 too, where an update smaller than 1/256 of a weight is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vltrain.optim.config import Moments

CHUNK_ELEMENTS = 1 << 24
"""At a time: bounds the fp32 copies of moments to a few of 64 MiB."""


def make_optimizer(groups: Sequence[dict[str, Any]], *, fused: bool) -> torch.optim.AdamW:
    """groups: from ``vltrain.optim.groups``. fused: torch's own in one kernel."""
    if any(group["moments"] is Moments.bf16 for group in groups):
        return Bf16MomentsAdamW(groups, lr=0.0)
    return torch.optim.AdamW(groups, lr=0.0, fused=fused)


class Bf16MomentsAdamW(torch.optim.AdamW):
    """See the module's docstring. State of a parameter: ``step`` (on the CPU), ``exp_avg`` and
    ``exp_avg_sq`` (bf16)."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore
        """One update of every parameter that has a gradient."""
        assert closure is None, "the engine computes gradients itself"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        assert parameter.dtype is torch.float32, f"a master in {parameter.dtype}"
        assert parameter.is_contiguous(), "its chunks must be views"
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        state["step"] += 1
        updates = int(state["step"].item())
        whole = (parameter, gradient, state["exp_avg"], state["exp_avg_sq"])
        for chunk in zip(
            *(tensor.reshape(-1).split(CHUNK_ELEMENTS) for tensor in whole), strict=True
        ):
            _update_chunk(*chunk, group=group, updates=updates)


def _update_chunk(
    values: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    *,
    group: dict[str, Any],
    updates: int,
) -> None:
    """Adam with decoupled weight decay, in place. All 1-D of one length."""
    beta1, beta2 = group["betas"]
    mean_now = mean.float().lerp_(gradient, 1 - beta1)
    square_now = square.float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    mean.copy_(mean_now)
    square.copy_(square_now)
    values.mul_(1 - group["lr"] * group["weight_decay"])
    spread = square_now.sqrt_().div_(math.sqrt(1 - beta2**updates)).add_(group["eps"])
    values.addcdiv_(mean_now, spread, value=-group["lr"] / (1 - beta1**updates))
