"""The paper's choices of towers at the smallest size, as overrides of conf/model/tiny.yaml: 16
visual tokens with each."""

from __future__ import annotations

from typing import Any

CLIP = {
    "model_type": "clip_vision_model",
    "settings": {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
    "image_size": 32,
    "patch_size": 8,
    "mean": [0.48, 0.46, 0.41],
    "std": [0.27, 0.26, 0.28],
    "state": -2,
}
DINOV2 = {
    "model_type": "dinov2",
    "settings": {  # its position table is of 6 x 6 patches and is resized to the view's 4 x 4
        "image_size": 48,
        "patch_size": 8,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 2,
    },
    "image_size": 32,
    "patch_size": 8,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
ENCODERS: dict[str, dict[str, Any]] = {
    "siglip": {"sam": None},
    "sam": {"siglip": None, "adaptor": {"grid": 4}},
    "clip": {"sam": None, "siglip": None, "vit": CLIP},
    "siglip_sam": {},
    "siglip_dinov2": {"sam": None, "vit": DINOV2},
    "sam_clip": {"siglip": None, "vit": CLIP},
}
JOINING = ("hybrid_split", "shared", "separate", "pool_width", "pool_height")
KINDS: dict[str, tuple[str, ...]] = {
    encoder: ("mlp",) if encoder in ("siglip", "sam", "clip") else JOINING for encoder in ENCODERS
}
TABLE = [(encoder, kind) for encoder, kinds in KINDS.items() for kind in kinds]


def overrides(encoder: str, kind: str) -> dict[str, Any]:
    """Of the tiny model, for one row of the table."""
    chosen = ENCODERS[encoder]
    return {**chosen, "adaptor": {**chosen.get("adaptor", {}), "kind": kind}}


def trained_tower(encoder: str) -> list[str]:
    """What stage 3 trains beside adaptor and language model: SigLIP, or what stands in its place;
    never SAM."""
    if "siglip" in encoder:
        return ["siglip"]
    return ["vit"] if "clip" in encoder else []
