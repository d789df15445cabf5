"""Parameters shared out over the processes one by one, while the model is filled.

In: the engine's config. Out: what to do with a parameter of the engine's module as soon as it has
its value. Under ZeRO-3 it is cut up, and each process keeps its share; a model that fits no process
can then be built, because none ever holds more than one of its parameters whole. DeepSpeed takes
such parameters as they are. Cost: one broadcast a parameter, from the first rank. Rejected:
``deepspeed.zero.Init`` around the construction, which cuts parameters up before transformers'
own initialisation sees them (and that fails, or gives other numbers than ZeRO 0 to 2).
"""

from __future__ import annotations

from collections.abc import Callable

import deepspeed
import torch
from torch import nn

from vltrain.engine.config import EngineConfig
from vltrain.engine.render import render


def sharing(config: EngineConfig, *, device: torch.device) -> Callable[[nn.Parameter], None]:
    """What to call with each parameter (collective, the same parameters in the same order on every
    rank; after ``start``). Without ZeRO-3 it does nothing."""
    if config.zero_stage != 3:
        return _keep_whole
    # Sizes of batches and clipping have no say in how parameters are cut up.
    rendered = render(
        config,
        clip_norm=0.0,
        micro_batch_size=1,
        micro_batches_per_step=1,
        device_type=device.type,
    )
    # Given a module (of nothing), it also makes linear layers keep no whole weight for backward.
    shared = deepspeed.zero.Init(module=nn.Module(), config_dict_or_path=rendered)

    def share(parameter: nn.Parameter) -> None:
        shared._convert_to_zero_parameters([parameter])

    return share


def _keep_whole(parameter: nn.Parameter) -> None: ...
