"""Which parts of a model go together; read before anything heavy is imported.

In: the model's config. Out: nothing, or a ConfigError with the values found. What a tower really
gives (``vit.probe``) is checked when the model is built.
"""

from __future__ import annotations

from vltrain.errors import ConfigError
from vltrain.models.config import AdaptorKind, ModelConfig, VitConfig
from vltrain.models.vl2_check import check_experts, check_router, check_tiles
from vltrain.processing.geometry import patch_grid

_ONE_TOWER = (AdaptorKind.mlp, AdaptorKind.tiles)
_POOLS = (AdaptorKind.pool_width, AdaptorKind.pool_height)
_OWN_PART = {"sam": "sam", "siglip": "siglip"}


def check_model(config: ModelConfig) -> None:
    """Raises ConfigError where the parts of ``config`` do not fit together."""
    _check_towers(config)
    _check_grids(config)
    check_tiles(config)
    check_experts(config.language)
    check_router(config)
    if config.image_token_id >= config.language.vocab_size:
        raise ConfigError(
            f"model.image_token_id is {config.image_token_id} but model.language.vocab_size is "
            f"{config.language.vocab_size}: the image token needs a row of the embedding"
        )
    if config.adaptor.train_sam_neck and config.sam is None:
        raise ConfigError(
            f"model.adaptor.train_sam_neck needs a SAM tower; {config.name!r} has none"
        )
    for part in ("sam", "siglip", "language"):
        sizes = getattr(config, part)
        if sizes is not None and sizes.width % (2 * sizes.heads) != 0:
            raise ConfigError(
                f"model.{part}.width is {sizes.width} and model.{part}.heads is {sizes.heads}: "
                "expected a width that divides into heads of an even size"
            )
    language = config.language
    if language.kv_heads < 1 or language.heads % language.kv_heads:
        raise ConfigError(
            f"model.language.kv_heads is {language.kv_heads} and model.language.heads is "
            f"{language.heads}: expected a number that divides the heads, each of which then "
            "serves as many"
        )
    if config.sam is not None:
        layers = config.sam.global_layers
        if not layers or not all(0 <= layer < config.sam.layers for layer in layers):
            raise ConfigError(
                f"model.sam.global_layers is {layers}: expected one number or more, each from 0 "
                f"to {config.sam.layers - 1} (model.sam.layers is {config.sam.layers})"
            )


def refuse_unpublished(config: ModelConfig) -> None:
    """Raises ConfigError for a model that the layouts of DeepSeek-VL cannot hold: they know SAM
    and SigLIP joined by ``hybrid_split``, and SigLIP alone."""
    if config.tiling is not None and config.language.moe is not None:
        raise ConfigError(
            f"model {config.name!r} is a DeepSeek-VL2, with tiles and experts: transformers has no "
            "class for it, and the layout of DeepSeek-VL no place. Export it with --format "
            "deepseek_vl2"
        )
    found = (config.towers, config.adaptor.kind)
    if config.language.moe is not None or found not in (
        (("sam", "siglip"), AdaptorKind.hybrid_split),
        (("siglip",), AdaptorKind.mlp),
    ):
        raise ConfigError(
            f"model {config.name!r} ({' and '.join(config.towers)}, joined by "
            f"{config.adaptor.kind.value}) cannot be exported: the released layouts hold SAM and "
            "SigLIP with model/adaptor=hybrid_split, SigLIP alone, or DeepSeek-VL2 (tiles and "
            "experts). launch/eval.py and launch/ask.py read this run as it is"
        )


def _check_towers(config: ModelConfig) -> None:
    towers, kind = config.towers, config.adaptor.kind
    have = f"model {config.name!r} has the vision towers {', '.join(towers) or '(none)'}"
    if not 1 <= len(towers) <= 2:
        raise ConfigError(
            f"{have}: an adaptor reads one or two. Choose with model/encoder=siglip, sam, "
            "siglip_sam, clip or siglip_dinov2, or set one to null"
        )
    if len(towers) == 1 and kind not in _ONE_TOWER:
        raise ConfigError(
            f"{have} but model.adaptor.kind is {kind.value!r}, which joins two: choose "
            "model/adaptor=mlp, or another tower with model/encoder"
        )
    if len(towers) == 2 and kind in _ONE_TOWER:
        others = ", ".join(k.value for k in AdaptorKind if k not in _ONE_TOWER)
        raise ConfigError(
            f"{have} but model.adaptor.kind is {kind.value!r}, which reads one: choose "
            f"model/adaptor from {others}, or set one of the towers to null"
        )
    if config.vit is not None:
        _check_vit(config.vit)


def _check_vit(vit: VitConfig) -> None:
    family = vit.model_type.removesuffix("_vision_model")
    if family in _OWN_PART:
        raise ConfigError(
            f"model.vit.model_type is {vit.model_type!r}: that tower has a part of its own, "
            f"model.{_OWN_PART[family]}"
        )
    for name in ("model_type", "image_size", "patch_size", "mean", "std"):
        if not getattr(vit, name):
            raise ConfigError(
                f"model.vit.{name} is not set: name a published directory with model.vit.path="
                "DIRECTORY, or choose model/encoder=clip or siglip_dinov2, which say all of it"
            )
    for name in ("mean", "std"):
        if len(getattr(vit, name)) != 3:
            raise ConfigError(f"model.vit.{name} is {getattr(vit, name)}: expected three numbers")


def _check_grids(config: ModelConfig) -> None:
    grids = {}
    for tower in ("siglip", "vit"):
        sizes = getattr(config, tower)
        if sizes is not None:
            grids[tower] = patch_grid(sizes.image_size, patch_size=sizes.patch_size)
    if len(set(grids.values())) > 1:
        raise ConfigError(
            f"siglip has a grid of {grids['siglip']} and vit one of {grids['vit']}: an adaptor "
            "joins them place by place. Set model.vit.image_size to "
            f"{grids['siglip']} x model.vit.patch_size"
        )
    grid = config.adaptor.grid
    if grids and grid is not None:
        raise ConfigError(
            f"model.adaptor.grid is {grid}, but {' and '.join(grids)} already says it "
            f"({config.visual_grid}); leave it out"
        )
    if config.visual_grid < 1:
        raise ConfigError(
            "SAM alone leaves the number of visual tokens open: set model.adaptor.grid to the side "
            "of their grid (24 gives 576, as published)"
        )
    if config.adaptor.kind in _POOLS and config.visual_grid % 2:
        raise ConfigError(
            f"model.adaptor.kind is {config.adaptor.kind.value!r}, which makes one token of two "
            f"neighbours, but the visual grid has {config.visual_grid} places a side: expected an "
            "even number"
        )
