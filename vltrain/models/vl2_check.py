"""Which sizes of DeepSeek-VL2's parts fit together, read when a config is checked; and which models
its layout holds."""

from __future__ import annotations

from vltrain.errors import ConfigError
from vltrain.models.config import Activation, AdaptorKind, LanguageConfig, ModelConfig
from vltrain.models.moe_config import Selection


def check_experts(config: LanguageConfig) -> None:
    """Raises ConfigError where ``mla`` and ``moe`` do not fit each other or the layers."""
    mla, moe = config.mla, config.moe
    if mla is not None:
        if moe is None:
            raise ConfigError(
                "model.language.mla is set and model.language.moe is not: latent attention is "
                "built with experts only (DeepSeek-VL2); set model.language.moe or leave mla out"
            )
        if mla.rope_dim % 2:
            raise ConfigError(
                f"model.language.mla.rope_dim is {mla.rope_dim}: expected an even number"
            )
        if config.kv_heads != config.heads:
            raise ConfigError(
                f"model.language.kv_heads is {config.kv_heads} and heads {config.heads}: latent "
                "attention makes keys and values for every head; set them alike"
            )
    if moe is None:
        return
    if not 1 <= moe.per_token <= moe.experts or moe.experts < 2:
        raise ConfigError(
            f"model.language.moe.per_token is {moe.per_token} of {moe.experts} experts: expected "
            "two experts or more, and from 1 to all of them for each token"
        )
    if not 0 <= moe.dense_layers < config.layers:
        raise ConfigError(
            f"model.language.moe.dense_layers is {moe.dense_layers} of {config.layers} layers: "
            "expected at least one layer with experts (leave moe out for none)"
        )
    if moe.shared < 1:
        raise ConfigError(
            f"model.language.moe.shared is {moe.shared}: expected at least one shared expert"
        )


def check_router(config: ModelConfig) -> None:
    """Raises ConfigError where ``router`` asks for what the model's routers would not do."""
    router, moe = config.router, config.language.moe
    if moe is None and (router.penalty_weight or router.correction_step):
        raise ConfigError(
            f"model.router.penalty_weight is {router.penalty_weight} and correction_step "
            f"{router.correction_step}, and model.language.moe is not set: there are no routers "
            "to balance; leave both at 0"
        )
    if router.correction_step and moe is not None and moe.selection is Selection.greedy:
        raise ConfigError(
            f"model.router.correction_step is {router.correction_step} and "
            "model.language.moe.selection is greedy, which chooses without corrections; set "
            "selection=noaux_tc or correction_step=0"
        )


def check_tiles(config: ModelConfig) -> None:
    """Raises ConfigError where tiling and adaptor do not fit each other."""
    tiled, reads_tiles = config.tiling is not None, config.adaptor.kind == AdaptorKind.tiles
    if tiled != reads_tiles:
        raise ConfigError(
            f"model.tiling is {'set' if tiled else 'not set'} and model.adaptor.kind is "
            f"{config.adaptor.kind.value!r}: the adaptor 'tiles' and model.tiling need each other"
        )
    if tiled and config.towers != ("siglip",):
        raise ConfigError(
            f"model.tiling is set and the vision towers are {', '.join(config.towers)}: tiles are "
            "seen by SigLIP alone"
        )
    if config.tiling is not None and config.tiling.max_tiles < 1:
        raise ConfigError(
            f"model.tiling.max_tiles is {config.tiling.max_tiles}: expected at least 1"
        )


def refuse_other_than_vl2(config: ModelConfig) -> None:
    """Raises ConfigError for a model that the released layout of DeepSeek-VL2 cannot hold."""
    if config.tiling is None or config.language.moe is None:
        raise ConfigError(
            f"model {config.name!r} cannot be exported as deepseek_vl2: that layout holds tiles "
            "(model.tiling) and experts (model.language.moe). Choose --format transformers or "
            "deepseek_vl"
        )
    assert config.siglip is not None, "tiles are seen by SigLIP"
    if config.siglip.activation is not Activation.gelu_tanh:
        raise ConfigError(
            f"model.siglip.activation is {config.siglip.activation.value} and the released code of "
            "DeepSeek-VL2 computes gelu_tanh whatever a directory says: the export would be "
            "another model than the one that was trained. launch/eval.py and launch/ask.py read "
            "this run as it is"
        )
