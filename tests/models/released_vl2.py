"""DeepSeek-VL2's release, restated from its description alone: names, shapes and config, in
numbers. Nothing here is taken from vltrain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from released_layout import Shapes, Siglip, both, random_tensors, siglip_shapes
from torch import Tensor

CORRECTION = "e_score_correction_bias"


@dataclass(frozen=True, kw_only=True)
class Latent:
    rank: int
    nope: int
    rope: int
    value: int


@dataclass(frozen=True, kw_only=True)
class MoeLanguage:
    """The first layer is dense; of the others each has ``experts`` and a shared MLP of the width
    of ``shared`` of them."""

    width: int
    layers: int
    heads: int
    ffn: int
    vocabulary: int
    experts: int
    shared: int
    expert_ffn: int
    latent: Latent | None
    corrected: bool


SO400M = Siglip(width=1152, layers=27, ffn=4304, tokens=729, patch=14)
_LATENT = Latent(rank=512, nope=128, rope=64, value=128)
FULL = {
    "tiny": MoeLanguage(
        width=1280,
        layers=12,
        heads=10,
        ffn=6848,
        vocabulary=129280,
        experts=64,
        shared=2,
        expert_ffn=896,
        latent=None,
        corrected=False,
    ),
    "small": MoeLanguage(
        width=2048,
        layers=27,
        heads=16,
        ffn=10944,
        vocabulary=102400,
        experts=64,
        shared=2,
        expert_ffn=1408,
        latent=_LATENT,
        corrected=False,
    ),
    "base": MoeLanguage(
        width=2560,
        layers=30,
        heads=32,
        ffn=12288,
        vocabulary=129280,
        experts=72,
        shared=2,
        expert_ffn=1536,
        latent=_LATENT,
        corrected=True,
    ),
}
SMALL_SIGLIP = Siglip(width=32, layers=2, ffn=64, tokens=49, patch=4)


def small_language(variant: str) -> MoeLanguage:
    """A variant's kind of attention and routing at the size of conf/model/tiny_vl2.yaml, with two
    shared experts."""
    return MoeLanguage(
        width=32,
        layers=3,
        heads=2,
        ffn=64,
        vocabulary=512,
        experts=8,
        shared=2,
        expert_ffn=32,
        latent=None if variant == "tiny" else Latent(rank=16, nope=8, rope=8, value=8),
        corrected=variant == "base",
    )


def vl2_shapes(siglip: Siglip, language: MoeLanguage) -> Shapes:
    """Every tensor of a released checkpoint."""
    width = language.width
    return {
        **siglip_shapes(siglip, "vision."),
        **both("projector.layers.0", (width, 4 * siglip.width)),
        **both("projector.layers.2", (width, width)),
        "image_newline": (width,),
        "view_seperator": (width,),
        **{f"language.{name}": shape for name, shape in language_shapes(language).items()},
    }


def language_shapes(language: MoeLanguage) -> Shapes:
    """The language model alone."""
    width = language.width
    shapes: Shapes = {
        "model.embed_tokens.weight": (language.vocabulary, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (language.vocabulary, width),
    }
    for n in range(language.layers):
        layer = f"model.layers.{n}."
        shapes[layer + "input_layernorm.weight"] = (width,)
        shapes[layer + "post_attention_layernorm.weight"] = (width,)
        shapes |= _attention(language, layer + "self_attn.")
        if n == 0:
            shapes |= _mlp(width, language.ffn, layer + "mlp.")
            continue
        shapes[layer + "mlp.gate.weight"] = (language.experts, width)
        if language.corrected:
            shapes[f"{layer}mlp.gate.{CORRECTION}"] = (language.experts,)
        for k in range(language.experts):
            shapes |= _mlp(width, language.expert_ffn, f"{layer}mlp.experts.{k}.")
        shared = language.shared * language.expert_ffn
        shapes |= _mlp(width, shared, layer + "mlp.shared_experts.")
    return shapes


def _attention(language: MoeLanguage, prefix: str) -> Shapes:
    width, heads, latent = language.width, language.heads, language.latent
    if latent is None:
        return {f"{prefix}{part}_proj.weight": (width, width) for part in "qkvo"}
    return {
        prefix + "q_proj.weight": (heads * (latent.nope + latent.rope), width),
        prefix + "kv_a_proj_with_mqa.weight": (latent.rank + latent.rope, width),
        prefix + "kv_a_layernorm.weight": (latent.rank,),
        prefix + "kv_b_proj.weight": (heads * (latent.nope + latent.value), latent.rank),
        prefix + "o_proj.weight": (width, heads * latent.value),
    }


def _mlp(width: int, ffn: int, prefix: str) -> Shapes:
    return {
        prefix + "gate_proj.weight": (ffn, width),
        prefix + "up_proj.weight": (ffn, width),
        prefix + "down_proj.weight": (width, ffn),
    }


def released_tensors(shapes: Shapes, *, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """Random ones; corrections are small and float32, which bf16 would round."""
    tensors = random_tensors(shapes, dtype=dtype)
    corrections = random_tensors(
        {name: shape for name, shape in shapes.items() if name.endswith(CORRECTION)},
        dtype=torch.float32,
        seed=1,
    )
    return tensors | corrections


def vl2_config_json(language: dict[str, Any], **vision: Any) -> dict[str, Any]:
    """config.json as it was released: what is the class's default is left out."""
    return {
        "model_type": "deepseek_vl_v2",
        "candidate_resolutions": [[384, 384], [384, 768], [768, 384]],
        "global_view_pos": "head",
        "tile_tag": "2D",
        "torch_dtype": "bfloat16",
        "language_config": {"model_type": "deepseek_v2", **language},
        "projector_config": {"model_type": "mlp_projector", "n_embed": 1280},
        "vision_config": {
            "layers": 27,
            "mlp_ratio": 3.7362,
            "model_name": "siglip_so400m_patch14_384",
            "model_type": "vision",
            "patch_size": 14,
            "width": 1152,
            **vision,
        },
    }


ROUTING: dict[str, dict[str, Any]] = {
    "tiny": {
        "use_mla": False,
        "kv_lora_rank": None,
        "q_lora_rank": None,
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "small": {
        "q_lora_rank": None,
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "base": {
        "q_lora_rank": None,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.0,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
}
"""What language_config says of attention and routing."""


def small_config_json(variant: str) -> dict[str, Any]:
    """Of ``small_language``."""
    language = {"num_attention_heads": 2, "num_experts_per_tok": 2, **ROUTING[variant]}
    return vl2_config_json(language, heads=2)
