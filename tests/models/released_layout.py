"""The original release, restated from its description alone: names, shapes and config, in numbers.
Nothing here is taken from vltrain."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Sam:
    width: int
    layers: int
    heads: int
    grid: int  # patches a side
    patch: int
    window: int
    global_layers: tuple[int, ...]
    out: int


@dataclass(frozen=True, kw_only=True)
class Siglip:
    width: int
    layers: int
    ffn: int
    tokens: int
    patch: int


@dataclass(frozen=True, kw_only=True)
class Language:
    width: int
    layers: int
    ffn: int
    vocabulary: int


SAM_B = Sam(
    width=768,
    layers=12,
    heads=12,
    grid=64,
    patch=16,
    window=14,
    global_layers=(2, 5, 8, 11),
    out=256,
)
SIGLIP_L = Siglip(width=1024, layers=24, ffn=4096, tokens=576, patch=16)
LLM_7B = Language(width=4096, layers=30, ffn=11008, vocabulary=102400)
LLM_1_3B = Language(width=2048, layers=24, ffn=5632, vocabulary=102400)
TINY_SAM = Sam(width=32, layers=2, heads=2, grid=8, patch=8, window=4, global_layers=(1,), out=16)
TINY_SIGLIP = Siglip(width=32, layers=2, ffn=64, tokens=16, patch=8)
TINY_LLM = Language(width=64, layers=2, ffn=128, vocabulary=512)


def released_shapes(sam: Sam | None, siglip: Siglip, language: Language) -> Shapes:
    """Every tensor of a released checkpoint: hybrid with ``sam``, else SigLIP alone."""
    shapes: Shapes = {}
    if sam is not None:
        shapes |= sam_shapes(sam, "vision_model.vision_tower_high.vision_tower.")
        high = 4 * sam.out
        shapes |= _neck(sam, "vision_model.vision_tower_high.vision_tower.neck_hd.")
        tower = "vision_model.vision_tower_high.vision_tower."
        shapes[tower + "downsamples.0.weight"] = (2 * sam.out, sam.out, 3, 3)
        shapes[tower + "downsamples.1.weight"] = (high, 2 * sam.out, 3, 3)
        shapes[tower + "hd_alpha_downsamples"] = (1,)
        shapes |= siglip_shapes(siglip, "vision_model.vision_tower_low.vision_tower.")
        shapes |= both("vision_model.high_layer_norm", (high,))
        shapes |= both("vision_model.low_layer_norm", (siglip.width,))
        half = language.width // 2
        shapes |= both("aligner.high_up_proj", (half, high))
        shapes |= both("aligner.low_up_proj", (half, siglip.width))
        shapes |= both("aligner.layers.1", (language.width, language.width))
    else:
        shapes |= siglip_shapes(siglip, "vision_model.vision_tower.")
        shapes |= both("aligner.layers.0", (language.width, siglip.width))
        shapes |= both("aligner.layers.2", (language.width, language.width))
    return shapes | _language(language)


def sam_shapes(sam: Sam, prefix: str) -> Shapes:
    """SAM's image encoder, as segment-anything names it too."""
    shapes: Shapes = {
        "pos_embed": (1, sam.grid, sam.grid, sam.width),
        **both("patch_embed.proj", (sam.width, 3, sam.patch, sam.patch)),
    }
    for n in range(sam.layers):
        side = sam.grid if n in sam.global_layers else sam.window
        relative = (2 * side - 1, sam.width // sam.heads)
        shapes |= both(f"blocks.{n}.norm1", (sam.width,))
        shapes |= both(f"blocks.{n}.norm2", (sam.width,))
        shapes |= both(f"blocks.{n}.attn.qkv", (3 * sam.width, sam.width))
        shapes |= both(f"blocks.{n}.attn.proj", (sam.width, sam.width))
        shapes[f"blocks.{n}.attn.rel_pos_h"] = relative
        shapes[f"blocks.{n}.attn.rel_pos_w"] = relative
        shapes |= both(f"blocks.{n}.mlp.lin1", (4 * sam.width, sam.width))
        shapes |= both(f"blocks.{n}.mlp.lin2", (sam.width, 4 * sam.width))
    named = {prefix + name: shape for name, shape in shapes.items()}
    return named | _neck(sam, prefix + "neck.")


def _neck(sam: Sam, prefix: str) -> Shapes:
    """1x1 and 3x3 convolution without bias, each followed by a norm over channels."""
    return {
        prefix + "0.weight": (sam.out, sam.width, 1, 1),
        **both(prefix + "1", (sam.out,)),
        prefix + "2.weight": (sam.out, sam.out, 3, 3),
        **both(prefix + "3", (sam.out,)),
    }


def siglip_shapes(siglip: Siglip, prefix: str) -> Shapes:
    """SigLIP's image encoder and pooling head, as timm names them."""
    width, ffn = siglip.width, siglip.ffn
    shapes: Shapes = {
        "pos_embed": (1, siglip.tokens, width),
        **both("patch_embed.proj", (width, 3, siglip.patch, siglip.patch)),
        **both("norm", (width,)),
        "attn_pool.latent": (1, 1, width),
        **both("attn_pool.q", (width, width)),
        **both("attn_pool.kv", (2 * width, width)),
        **both("attn_pool.proj", (width, width)),
        **both("attn_pool.norm", (width,)),
        **both("attn_pool.mlp.fc1", (ffn, width)),
        **both("attn_pool.mlp.fc2", (width, ffn)),
    }
    for n in range(siglip.layers):
        shapes |= both(f"blocks.{n}.norm1", (width,))
        shapes |= both(f"blocks.{n}.norm2", (width,))
        shapes |= both(f"blocks.{n}.attn.qkv", (3 * width, width))
        shapes |= both(f"blocks.{n}.attn.proj", (width, width))
        shapes |= both(f"blocks.{n}.mlp.fc1", (ffn, width))
        shapes |= both(f"blocks.{n}.mlp.fc2", (width, ffn))
    return {prefix + name: shape for name, shape in shapes.items()}


def _language(language: Language) -> Shapes:
    width, ffn = language.width, language.ffn
    shapes: Shapes = {
        "model.embed_tokens.weight": (language.vocabulary, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (language.vocabulary, width),
    }
    for n in range(language.layers):
        layer = f"model.layers.{n}."
        for part in "qkvo":
            shapes[f"{layer}self_attn.{part}_proj.weight"] = (width, width)
        shapes[layer + "mlp.gate_proj.weight"] = (ffn, width)
        shapes[layer + "mlp.up_proj.weight"] = (ffn, width)
        shapes[layer + "mlp.down_proj.weight"] = (width, ffn)
        shapes[layer + "input_layernorm.weight"] = (width,)
        shapes[layer + "post_attention_layernorm.weight"] = (width,)
    return {f"language_model.{name}": shape for name, shape in shapes.items()}


def both(name: str, weight: tuple[int, ...]) -> Shapes:
    """A weight, and a bias of its first length."""
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def random_tensors(shapes: Shapes, *, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """No two equal; norms near one and the rest small, so that a forward pass stays in range."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        draw = 0.1 * torch.randn(shape, generator=generator)
        is_norm = name.endswith("weight") and len(shape) == 1
        tensors[name] = (1 + draw if is_norm else draw).to(dtype)
    return tensors


def tiny_config_json(*, hybrid: bool) -> dict[str, Any]:
    """config.json of a released checkpoint of the tiny size."""
    siglip = {
        "image_size": 32,
        "model_name": "siglip_large_patch16_384",
        "select_feature": "same",
        "select_layer": -1,
    }
    high = {"image_size": 64, "model_name": "sam_b_downsample", "output_dim": 64}
    vision = {
        "cls": "HybridVisionTower",
        "params": {"concat_type": "tuple", "high_res_cfg": high, "low_res_cfg": siglip},
    }
    if not hybrid:
        vision = {"cls": "CLIPVisionTower", "params": siglip}
    return {
        "model_type": "multi_modality",
        "vision_config": {"model_type": "vision", **vision},
        "aligner_config": {"model_type": "aligner", "cls": "MlpProjector", "params": {}},
        "language_config": {
            "model_type": "llama",
            "num_hidden_layers": 2,
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 2,
        },
    }


def write_released(
    directory: Path, tensors: dict[str, Tensor], *, config: dict[str, Any], kind: str, shards: int
) -> None:
    """kind: safetensors or bin. More than one shard has an index, as the released 7B."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    stem = "model" if kind == "safetensors" else "pytorch_model"
    names = list(tensors)
    weight_map = {}
    for number in range(shards):
        own = {name: tensors[name] for name in names[number::shards]}
        file = f"{stem}.{kind}"
        if shards > 1:
            file = f"{stem}-{number + 1:05d}-of-{shards:05d}.{kind}"
        if kind == "safetensors":
            save_file(own, directory / file, metadata={"format": "pt"})
        else:
            torch.save(own, directory / file)
        weight_map |= dict.fromkeys(own, file)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (directory / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
