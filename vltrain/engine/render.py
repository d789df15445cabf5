"""The DeepSpeed dict, rendered from the run config.

In: engine config, clip norm, batch sizes, kind of device. Out: a plain dict for
``deepspeed.initialize``. There is no DeepSpeed JSON file that could disagree with the run config.
Everything whose DeepSpeed default would change what is learned is stated: clipping (1.0 where a
config is silent), the dtype of gradient accumulation and that of sums over ranks (bf16 where it is
silent), the division by accumulation steps (``Engine.backward``). A user's own keys come in through
``engine.extra`` and are refused where they contradict.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from vltrain.engine.config import Dtype, EngineConfig, Offload
from vltrain.errors import ConfigError, EngineError

_NO_EXPERT_PARALLELISM = (
    "nothing, there is no expert parallelism: engine.zero_stage shares experts out like all other "
    "weights (docs/model.md, Expert parallelism, says what was tried)"
)
_OWNED = {
    "optimizer": "optim.* (the optimizer is torch's AdamW)",
    "scheduler": "optim.schedule.*",
    "fp16": "engine.dtype (fp32 or bf16)",
    "amp": "engine.dtype",
    "torch_autocast": "engine.dtype with engine.zero_stage=0",
    "train_batch_size": "data.batch.sequences",
    "managed_gradient_accumulation": "nothing, the engine sets every accumulation boundary itself",
    "load_universal_checkpoint": "resume",
    "checkpoint": "resume and checkpoint.*",
    "data_efficiency": "data.*",
    "curriculum_learning": "data.*",
    "data_types": "engine.dtype (gradients are accumulated in fp32)",
    "tensor_parallel": "nothing, there is no tensor parallelism",
    "pipeline": "nothing, there is no pipeline parallelism",
    "compression_training": "nothing, there is no compression",
    "progressive_layer_drop": "nothing, every layer runs",
    "expert_parallel": _NO_EXPERT_PARALLELISM,
    "autoep": _NO_EXPERT_PARALLELISM,
}
"""DeepSpeed keys that would change what is learned behind the run config's back, and what sets
it."""

_SAID_BY = {
    "zero_optimization.stage": "engine.zero_stage",
    "zero_optimization.reduce_bucket_size": "engine.bucket_elements",
    "zero_optimization.allgather_bucket_size": "engine.bucket_elements",
    "zero_optimization.stage3_prefetch_bucket_size": "engine.bucket_elements",
    "zero_optimization.stage3_param_persistence_threshold": "engine.param_persistence_threshold",
    "zero_optimization.offload_optimizer": "engine.offload_optimizer",
    "zero_optimization.offload_param": "engine.offload_params",
    "bf16": "engine.dtype",
    "communication_data_type": "engine.reduce_dtype",
    "gradient_clipping": "optim.clip_norm",
    "train_micro_batch_size_per_gpu": "data.batch.micro",
    "gradient_accumulation_steps": "data.batch.sequences and data.batch.micro",
}


def render(
    config: EngineConfig,
    *,
    clip_norm: float,
    micro_batch_size: int,
    micro_batches_per_step: int,
    device_type: str,
) -> dict[str, Any]:
    """The dict for ``deepspeed.initialize``. Raises EngineError for settings that contradict, and
    what ``refuse_owned`` raises."""
    _check(config)
    refuse_owned(config)
    rendered: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": micro_batches_per_step,
        "gradient_clipping": float(clip_norm),
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
        "zero_optimization": _zero(config, device_type=device_type),
        # Our optimizer is torch's own also where its states are offloaded.
        "zero_force_ds_cpu_optimizer": False,
        "communication_data_type": config.reduce_dtype.value,
        **_precision(config),
    }
    _merge_into(rendered, config.extra, path="")
    return rendered


def refuse_owned(config: EngineConfig) -> None:
    """Raises ConfigError where ``engine.extra`` has a key that something else sets; read when a
    config is checked, before anything is started."""
    ours = _precision(config)
    for key, value in config.extra.items():
        if key in _OWNED and value != ours.get(key):
            raise ConfigError(
                f"engine.extra.{key} is not taken: it would contradict the run config. "
                f"Instead: {_OWNED[key]}."
            )


def parameter_dtype(config: EngineConfig) -> str:
    """Dtype that the engine's module must hold its parameters in: ``float32`` or ``bfloat16``."""
    return "bfloat16" if config.dtype == Dtype.bf16 and config.zero_stage > 0 else "float32"


def frozen_dtype(config: EngineConfig) -> str:
    """Dtype of what lies outside the engine and does not train: nothing there keeps masters, so
    bf16 wherever bf16 is computed in."""
    return "bfloat16" if config.dtype == Dtype.bf16 else "float32"


def _check(config: EngineConfig) -> None:
    if config.zero_stage not in (0, 1, 2, 3):
        raise EngineError(
            f"engine.zero_stage={config.zero_stage}: expected 0, 1, 2 or 3 (0 keeps everything on "
            "every process; 3 shares out parameters, gradients and optimizer states)."
        )
    if config.offload_optimizer != Offload.none and config.zero_stage == 0:
        raise EngineError(
            "engine.offload_optimizer=cpu needs the optimizer's states to be shared out: set "
            "engine.zero_stage=1, 2 or 3."
        )
    if config.offload_params != Offload.none and config.zero_stage != 3:
        raise EngineError(
            "engine.offload_params=cpu works with engine.zero_stage=3 only, found "
            f"{config.zero_stage}."
        )


def _precision(config: EngineConfig) -> dict[str, Any]:
    precision: dict[str, Any] = {
        "data_types": {"grad_accum_dtype": "fp32"},
        "bf16": {"enabled": config.dtype == Dtype.bf16 and config.zero_stage > 0},
    }
    if config.dtype == Dtype.bf16 and config.zero_stage == 0:
        # DeepSpeed has no fp32 accumulation for bf16 parameters without ZeRO. So parameters stay
        # in fp32 and the matrix products are in bf16; memory is no matter where ZeRO 0 fits.
        precision["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return precision


def _zero(config: EngineConfig, *, device_type: str) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.zero_stage == 0:
        return zero
    zero |= {
        "reduce_bucket_size": config.bucket_elements,
        "allgather_bucket_size": config.bucket_elements,
        "contiguous_gradients": True,
        "round_robin_gradients": False,
        "overlap_comm": device_type == "cuda" and config.zero_stage > 1,
    }
    if config.offload_optimizer != Offload.none:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device_type == "cuda"}
    if config.zero_stage == 3:
        zero["stage3_prefetch_bucket_size"] = config.bucket_elements
        zero["stage3_param_persistence_threshold"] = config.param_persistence_threshold
        if config.offload_params != Offload.none:
            zero["offload_param"] = {"device": "cpu", "pin_memory": device_type == "cuda"}
    return zero


def _merge_into(target: dict[str, Any], extra: Mapping[str, Any], *, path: str) -> None:
    for key, value in extra.items():
        where = f"{path}{key}"
        ours = target.get(key)
        if isinstance(ours, dict) and isinstance(value, Mapping):
            _merge_into(ours, value, path=f"{where}.")
        elif (key in target or where in _SAID_BY) and ours != value:
            said_by = _SAID_BY.get(where) or _SAID_BY.get(path.rstrip("."))
            remedy = (
                f"Set {said_by} instead." if said_by else "Leave it out: we depend on our value."
            )
            raise EngineError(
                f"engine.extra.{where}={value!r} contradicts the run config, which gives "
                f"{ours!r}. {remedy}"
            )
        else:
            target[key] = copy.deepcopy(value)
