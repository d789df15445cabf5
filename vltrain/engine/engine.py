"""One engine for CPU and GPU, one process or many, ZeRO 0 to 3: forward, backward, update.

In: the module that trains, parameter groups, configs. Out: losses, the gradient norm and a flag
that is the same on every rank. DeepSpeed does the work; this class holds the rules that its
defaults would break:

- The caller's loss is already (sum of token losses x processes / label tokens of the whole step),
  so nothing divides by the number of micro-batches; the averaging over processes undoes the factor.
- Accumulation boundaries are set before each forward, one way for every ZeRO stage.
- Whether a step is finite is decided before the update, from the loss and the global gradient norm,
  and agreed on by all ranks; a step that is not leaves weights and optimizer states as they were.
- Every trainable parameter must get a gradient in every micro-batch (the module's own rule): ZeRO-3
  would otherwise apply the gradient of an earlier step again.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS
from torch import nn

from vltrain import distributed
from vltrain.engine import fragments, gradients
from vltrain.engine.config import EngineConfig, Offload
from vltrain.engine.fragments import Fragment, Read
from vltrain.engine.render import parameter_dtype, render
from vltrain.errors import EngineError
from vltrain.optim.adamw import make_optimizer

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What an update was, the same on every rank.

    loss: mean over processes of each one's summed micro-batch losses (nats per label token when the
    caller scales as the module docstring says). grad_norm: global L2 norm before clipping; infinite
    where a gradient is not finite. finite: both were finite; False means that nothing was updated.
    """

    loss: float
    grad_norm: float
    finite: bool


class Engine:
    """See the module's docstring. Calls per step: for each micro-batch ``begin_micro``,
    ``forward``, ``backward``; then one ``apply``. Every rank makes the same calls."""

    def __init__(self, wrapped: Any, *, groups: list[dict[str, Any]]) -> None:
        self._engine = wrapped
        self._part_of_group = [group["part"] for group in groups]
        self._loss: torch.Tensor | None = None
        self._last = False

    @property
    def module(self) -> nn.Module:
        """The module as given (its parameters partitioned under ZeRO-3)."""
        return self._engine.module

    @property
    def device(self) -> torch.device:
        return torch.device(self._engine.device)

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts that train, each once, in the order of the parameter groups."""
        return tuple(dict.fromkeys(self._part_of_group))

    def begin_micro(self, *, last: bool) -> None:
        """Announce the next micro-batch; ``last``: the update comes after its backward."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._last = last

    def forward(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The module's loss sum for one micro-batch (scalar, fp32); ``inputs`` are its named
        arguments."""
        return self._engine(**inputs)

    def evaluate(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The module's loss sum without gradients, between steps (collective under ZeRO-3)."""
        assert self._loss is None, "evaluate() between the micro-batches of a step"
        with self.inference():
            return self.module(**inputs)

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """Context in which ``module`` may be called without gradients, in the engine's dtype."""
        autocast = bool(self._engine.torch_autocast_enabled())  # ZeRO 0 in bf16
        with (
            torch.no_grad(),
            torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=autocast),
        ):
            yield

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of ``loss``, already scaled as the module's docstring says."""
        self._engine.backward(loss, scale_wrt_gas=False)
        detached = loss.detach().float()
        self._loss = detached if self._loss is None else self._loss + detached

    def apply(self, learning_rates: Mapping[str, float]) -> StepOutcome:
        """Clip and update with each part's learning rate (collective), or discard a step that is
        not finite. Waits for the device once: the flag must be known before the update."""
        assert self._last, "apply() without a last micro-batch"
        assert self._loss is not None, "apply() without a backward"
        square = gradients.square_share(self._engine).to(self._loss.device)
        # One wait for the device and one exchange; the sums, and so the flag, are every rank's.
        mine = torch.stack([self._loss.double(), square]).tolist()
        loss_sum, square_sum = distributed.sum_floats(mine)
        loss = loss_sum / distributed.world_size()
        norm = math.sqrt(square_sum) if math.isfinite(square_sum) else math.inf
        finite = math.isfinite(loss) and math.isfinite(norm)
        self._loss, self._last = None, False
        if not finite:
            gradients.discard(self._engine)
            return StepOutcome(loss=loss, grad_norm=norm, finite=False)
        for group, part in zip(
            self._engine.optimizer.param_groups, self._part_of_group, strict=True
        ):
            group["lr"] = learning_rates[part]
        self._engine.step()
        return StepOutcome(loss=loss, grad_norm=norm, finite=True)

    def updates_made(self) -> int:
        """Updates that the optimizer has made, also before the last restart."""
        return fragments.updates_made(self._engine)

    def export_fragments(
        self, *, frozen: Callable[[str], bool] = lambda name: False
    ) -> Iterator[Fragment]:
        """This rank's share of masters and moments; ``frozen(name)``: export that frozen parameter
        too."""
        return fragments.export_fragments(self._engine, frozen=frozen)

    def frozen_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Whole parameters of the module that do not train, one at a time (collective under ZeRO-3,
        which gathers each)."""
        for name, parameter in self.module.named_parameters():
            if not parameter.requires_grad:
                partitioned = hasattr(parameter, "ds_tensor")
                with deepspeed.zero.GatheredParameters([parameter], enabled=partitioned):
                    yield name, parameter.detach()

    def import_state(self, read: Read, *, updates: int | None) -> None:
        """Load masters, moments and the count of updates from any world size and ZeRO stage
        (collective). ``updates`` None loads masters alone and leaves the optimizer fresh."""
        fragments.import_state(self._engine, read, updates=updates)


def build_engine(
    module: nn.Module,
    *,
    groups: list[dict[str, Any]],
    config: EngineConfig,
    clip_norm: float,
    micro_batch_size: int,
    micro_batches_per_step: int,
    device: torch.device,
) -> Engine:
    """Wrap ``module`` (collective, after ``start``).

    groups: from ``vltrain.optim.groups``; their parameters must be exactly the trainable ones. The
    module's floating parameters are cast to the engine's parameter dtype. micro_batch_size: packs a
    micro-batch; micro_batches_per_step: of one rank. Raises EngineError for contradicting settings.
    """
    rendered = render(
        config,
        clip_norm=clip_norm,
        micro_batch_size=micro_batch_size,
        micro_batches_per_step=micro_batches_per_step,
        device_type=device.type,
    )
    _check_groups(module, groups)
    if parameter_dtype(config) == "float32":
        module.float()
    fused = device.type == "cuda" or config.offload_optimizer != Offload.none
    optimizer = make_optimizer(groups, fused=fused)
    if type(optimizer) not in ZERO_SUPPORTED_OPTIMIZERS:  # else every run would warn of it
        ZERO_SUPPORTED_OPTIMIZERS.append(type(optimizer))
    # Its bf16 optimizer prints memory reports.
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        wrapped, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=rendered, dist_init_required=False
        )
    log.debug("DeepSpeed printed: %s", printed.getvalue())
    return Engine(wrapped, groups=groups)


def _check_groups(module: nn.Module, groups: list[dict[str, Any]]) -> None:
    trainable = {id(p): n for n, p in module.named_parameters() if p.requires_grad}
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)), "a parameter is in two groups"
    if set(grouped) != set(trainable):
        lacking = sorted(n for i, n in trainable.items() if i not in set(grouped))
        raise EngineError(
            f"The optimizer has {len(grouped)} parameters, the module trains {len(trainable)}. Not "
            f"in any group: {', '.join(lacking[:5]) or 'none'}; grouped but not trainable in the "
            f"module: {len(set(grouped) - set(trainable))}. Group after marking what trains."
        )
