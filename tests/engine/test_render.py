from __future__ import annotations

from typing import Any

import pytest

from vltrain.engine.config import Dtype, EngineConfig, Offload
from vltrain.engine.render import frozen_dtype, parameter_dtype, render
from vltrain.errors import ConfigError, EngineError


def rendered(config: EngineConfig, *, device_type: str = "cuda") -> dict[str, Any]:
    return render(
        config,
        clip_norm=0.0,
        micro_batch_size=2,
        micro_batches_per_step=3,
        device_type=device_type,
    )


def test_what_deepspeed_would_choose_otherwise_is_stated() -> None:
    out = rendered(EngineConfig(zero_stage=2))
    assert out["gradient_clipping"] == 0.0  # silent, DeepSpeed clips at 1.0
    assert out["data_types"] == {"grad_accum_dtype": "fp32"}
    assert out["communication_data_type"] == "fp32"  # silent, DeepSpeed adds over ranks in bf16
    assert out["bf16"] == {"enabled": True}
    assert out["zero_force_ds_cpu_optimizer"] is False
    assert (out["train_micro_batch_size_per_gpu"], out["gradient_accumulation_steps"]) == (2, 3)
    assert "optimizer" not in out


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_zero_stages(stage: int) -> None:
    out = rendered(EngineConfig(zero_stage=stage, param_persistence_threshold=7))
    zero = out["zero_optimization"]
    assert zero["stage"] == stage
    assert ("reduce_bucket_size" in zero) == (stage > 0)
    assert zero.get("stage3_param_persistence_threshold") == (7 if stage == 3 else None)


def test_gradients_may_be_added_in_bf16_to_halve_the_traffic() -> None:
    out = rendered(EngineConfig(zero_stage=2, reduce_dtype=Dtype.bf16))
    assert out["communication_data_type"] == "bf16"


def test_bf16_without_zero_keeps_fp32_parameters() -> None:
    config = EngineConfig(zero_stage=0, dtype=Dtype.bf16)
    assert parameter_dtype(config) == "float32"
    out = rendered(config)
    assert out["bf16"] == {"enabled": False}
    assert out["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert parameter_dtype(EngineConfig(zero_stage=1)) == "bfloat16"


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_frozen_towers_are_in_bf16_where_the_engine_is(stage: int) -> None:
    assert frozen_dtype(EngineConfig(zero_stage=stage, dtype=Dtype.bf16)) == "bfloat16"
    assert frozen_dtype(EngineConfig(zero_stage=stage, dtype=Dtype.fp32)) == "float32"


def test_offload_is_rendered() -> None:
    config = EngineConfig(zero_stage=3, offload_optimizer=Offload.cpu, offload_params=Offload.cpu)
    zero = rendered(config)["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert zero["offload_param"] == {"device": "cpu", "pin_memory": True}
    zero = rendered(config, device_type="cpu")["zero_optimization"]
    assert zero["offload_param"] == {"device": "cpu", "pin_memory": False}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (EngineConfig(zero_stage=4), r"engine\.zero_stage=4: expected 0, 1, 2 or 3"),
        (
            EngineConfig(zero_stage=0, offload_optimizer=Offload.cpu),
            r"engine\.offload_optimizer=cpu needs .*engine\.zero_stage=1, 2 or 3",
        ),
        (
            EngineConfig(zero_stage=2, offload_params=Offload.cpu),
            r"engine\.offload_params=cpu works with engine\.zero_stage=3 only, found 2",
        ),
    ],
)
def test_settings_that_do_not_go_together(config: EngineConfig, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        rendered(config)


def test_extra_keys_are_passed_on() -> None:
    extra = {
        "memory_breakdown": True,
        "gradient_clipping": 0.0,  # the same value is no contradiction
        "zero_optimization": {"round_robin_gradients": False, "sub_group_size": 1000},
    }
    out = rendered(EngineConfig(zero_stage=2, extra=extra))
    assert out["memory_breakdown"] is True
    assert out["zero_optimization"]["sub_group_size"] == 1000
    assert out["zero_optimization"]["stage"] == 2


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (
            {"optimizer": {"type": "Adam"}},
            r"engine\.extra\.optimizer is not taken.*Instead: optim\.",
        ),
        ({"scheduler": {"type": "WarmupLR"}}, r"Instead: optim\.schedule"),
        ({"train_batch_size": 64}, r"Instead: data\.batch\.sequences"),
        ({"pipeline": {"stages": 2}}, r"Instead: nothing, there is no pipeline parallelism"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, r"accumulated in fp32"),
        (  # DeepSpeed finds no layer of experts by itself, says so in a warning, and trains on
            {"expert_parallel": {"enabled": True, "autoep_size": 2}},
            r"engine\.extra\.expert_parallel .*no expert parallelism.*docs/model\.md, Expert",
        ),
        ({"autoep": {"enabled": True}}, r"engine\.extra\.autoep .*no expert parallelism"),
    ],
)
def test_keys_that_something_else_sets_are_refused(extra: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        rendered(EngineConfig(zero_stage=2, extra=extra))


def test_a_key_that_says_what_is_rendered_anyway_is_no_contradiction() -> None:
    same = {"data_types": {"grad_accum_dtype": "fp32"}, "pipeline": None}
    assert rendered(EngineConfig(zero_stage=2, extra=same))["data_types"] == same["data_types"]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (
            {"gradient_clipping": 1.0},
            r"gradient_clipping=1\.0 .* gives 0\.0\. Set optim\.clip_norm",
        ),
        (
            {"zero_optimization": {"stage": 3}},
            r"engine\.extra\.zero_optimization\.stage=3 .* gives 2\. Set engine\.zero_stage",
        ),
        ({"bf16": {"enabled": False}}, r"Set engine\.dtype instead"),
        (
            {"gradient_accumulation_steps": 8},
            r"Set data\.batch\.sequences and data\.batch\.micro instead",
        ),
        (  # not rendered at all: no offload is asked for
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            r"offload_optimizer=.* gives None\. Set engine\.offload_optimizer instead",
        ),
        (
            {"zero_optimization": {"offload_param": {"device": "nvme"}}},
            r"Set engine\.offload_params instead",
        ),
        (
            {"zero_optimization": {"stage3_prefetch_bucket_size": 5}},
            r"Set engine\.bucket_elements instead",
        ),
        ({"communication_data_type": "bf16"}, r"Set engine\.reduce_dtype instead"),
        ({"zero_optimization": {"contiguous_gradients": False}}, r"we depend on our value"),
    ],
)
def test_extra_keys_that_contradict_are_refused(extra: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineError, match=words):
        rendered(EngineConfig(zero_stage=2, extra=extra))
