"""A published DeepSeek language model's config.json, written and held against our config.

In: our config of a language model with experts; the settings of a published directory, whole or
partial (of VL2's the released files leave out what is the class's default). Out: settings;
differences in words. What is not said has the default of the class that reads it: for ``deepseek``,
``deepseek_v2`` and a VL2's language_config those of the released code, for ``deepseek_v3`` those of
transformers' class (whose routing is fixed). transformers' own class for V2 is not used, because
it knows neither ``use_mla`` nor ``scoring_func``.

Two settings are of training alone (``aux_loss_alpha``, ``seq_aux``): here the run's config says how
routers are balanced, so a directory that says otherwise is no other model and is not refused, but
the difference is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vltrain.models.config import LanguageConfig
from vltrain.models.layouts import DEEPSEEK_VL2
from vltrain.models.moe_config import RouterConfig

_V2: dict[str, Any] = {
    "num_attention_heads": 32,
    "use_mla": True,
    "q_lora_rank": 1536,
    "num_experts_per_tok": None,
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 0,
    "moe_layer_freq": 1,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "deepseek": {**_V2, "use_mla": False, "q_lora_rank": None},
    "deepseek_v2": _V2,
    "deepseek_v3": {
        **_V2,
        "num_attention_heads": 128,
        "num_experts_per_tok": 8,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "n_group": 8,
        "topk_group": 4,
        "first_k_dense_replace": 3,
        "rope_interleave": True,
    },
    DEEPSEEK_VL2: _V2,
}
"""By model_type of the directory; only what is compared. Sizes are shown by the tensors."""
_FIELDS = {
    "num_attention_heads": "heads",
    "num_experts_per_tok": "moe.per_token",
    "scoring_func": "moe.scoring",
    "topk_method": "moe.selection",
    "norm_topk_prob": "moe.normalise_weights",
    "routed_scaling_factor": "moe.scale",
    "first_k_dense_replace": "moe.dense_layers",
    "rms_norm_eps": "norm_eps",
}
"""Ours of theirs; what has none can have one value alone."""
_ALWAYS = {"rope_interleave": True}
"""What the parts compute and no released file says."""


def language_settings(config: LanguageConfig) -> dict[str, Any]:
    """What ``config`` is in the words of the released code."""
    moe, mla = config.moe, config.mla
    assert moe is not None, "a language model with experts"
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.ffn,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": False,
        "use_mla": mla is not None,
        "q_lora_rank": None,
        "kv_lora_rank": None if mla is None else mla.kv_rank,
        "qk_nope_head_dim": 0 if mla is None else mla.nope_dim,
        "qk_rope_head_dim": 0 if mla is None else mla.rope_dim,
        "v_head_dim": 0 if mla is None else mla.value_dim,
        "n_routed_experts": moe.experts,
        "num_experts_per_tok": moe.per_token,
        "n_shared_experts": moe.shared,
        "moe_intermediate_size": moe.ffn,
        "first_k_dense_replace": moe.dense_layers,
        "moe_layer_freq": 1,
        "scoring_func": moe.scoring.value,
        "topk_method": moe.selection.value,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": moe.normalise_weights,
        "routed_scaling_factor": moe.scale,
    }


def language_differences(
    said: Mapping[str, Any], *, model_type: str, config: LanguageConfig
) -> list[str]:
    """Where a published language model would compute something else than ``config`` does, in words
    (but for the rotary embedding). said: its settings."""
    if config.moe is None:
        return [
            f"config.json: language is a {said.get('model_type', model_type)} with experts, "
            "model.language.moe is not set"
        ]
    own = language_settings(config) | _ALWAYS
    found = _filled(said, model_type=model_type)
    return [
        f"config.json: {key} of language is {found[key]}, {_own(key, own[key])}"
        for key in _DEFAULTS[model_type]
        if found[key] != own[key]
    ]


def balance_differences(said: Mapping[str, Any], *, router: RouterConfig) -> list[str]:
    """Where a published language model says that it was trained with other routers' balance than
    ``router``, in words. said: its settings; what they leave out is not compared."""
    found = []
    if said.get("aux_loss_alpha", router.penalty_weight) != router.penalty_weight:
        found.append(
            f"config.json: aux_loss_alpha of language is {said['aux_loss_alpha']}; this run's is "
            f"model.router.penalty_weight={router.penalty_weight}"
        )
    if not said.get("seq_aux", True):
        found.append(
            "config.json: seq_aux of language is False; this run's balance loss is by sequence"
        )
    return found


def _filled(said: Mapping[str, Any], *, model_type: str) -> dict[str, Any]:
    """Theirs with defaults, in the form that ``language_settings`` has."""
    defaults = _DEFAULTS[model_type]
    found = {key: said.get(key, default) for key, default in defaults.items()}
    if found["topk_method"] == "group_limited_greedy" and found["n_group"] in (None, 1):
        found["topk_method"] = "greedy"  # of one group
    if found["topk_method"] == "greedy" or found["n_group"] is None:
        found["n_group"] = found["topk_group"] = 1  # not asked
    return found


def _own(key: str, value: Any) -> str:
    if key == "use_mla":
        return f"model.language.mla is {'set' if value else 'not set'}"
    if key not in _FIELDS:
        return f"expected {value}"
    return f"model.language.{_FIELDS[key]} is {value}"
