"""Config of the model. Values live in conf/model/; sizes follow the published configs (facts
1.8)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from vltrain.models.moe_config import ExpertsKind, MlaConfig, MoeConfig, RouterConfig
from vltrain.processing.geometry import FixedGeometry, Geometry, TiledGeometry, patch_grid
from vltrain.processing.tiling import TilingRule

TOWERS: tuple[str, ...] = ("sam", "siglip", "vit")
"""Parts that see pictures."""
PARTS: tuple[str, ...] = (*TOWERS, "adaptor", "language")


class Attention(str, Enum):
    """Attention back ends of the language model; each isolates the documents of a pack."""

    sdpa = "sdpa"
    eager = "eager"


class AdaptorKind(str, Enum):
    """How towers become visual tokens (DeepSeek-VL 3.1, Table 10). Tokens are as many with each,
    but for tiles."""

    mlp = "mlp"  # one tower (1.3B): Linear, GELU, Linear
    hybrid_split = "hybrid_split"  # 7B: a projection each, concatenated channels, GELU, Linear
    shared = "shared"  # concatenated channels, one MLP for both
    separate = "separate"  # an MLP each, concatenated channels
    pool_width = "pool_width"  # neighbours in a row become one token; one tower after the other
    pool_height = "pool_height"  # neighbours in a column
    tiles = "tiles"  # VL2: pixel shuffle, Linear, GELU, Linear; newlines and a separator


class Activation(str, Enum):
    """SigLIP's activation."""

    gelu = "gelu"  # exact, as DeepSeek-VL runs it
    gelu_tanh = "gelu_tanh"  # its tanh approximation, as DeepSeek-VL2 does


class ImageRounding(str, Enum):
    """How many pixels the short side of a scaled picture has (the long side has all)."""

    official = "official"  # the fraction is cut off, as the released code does
    transformers = "transformers"  # to the nearest, halves to the even number


class Recompute(str, Enum):
    """What a part's backward pass computes again instead of keeping it."""

    none = "none"
    selective = "selective"  # all but matrix products, convolutions and attention
    full = "full"  # whole layers


@dataclass
class SamConfig:
    """SAM-B as the high-resolution tower."""

    image_size: int = 1024
    patch_size: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    window: int = 14
    global_layers: list[int] = field(default_factory=lambda: [2, 5, 8, 11])
    out_channels: int = 256


@dataclass
class SiglipConfig:
    """SigLIP as the low-resolution tower."""

    image_size: int = 384
    patch_size: int = 16
    width: int = 1024
    layers: int = 24
    heads: int = 16
    ffn: int = 4096
    activation: Activation = Activation.gelu


@dataclass
class VitConfig:
    """Any other vision transformer of transformers', such as CLIP or DINOv2. Its part is ``vit``.

    ``path`` fills the rest from a published directory (config.json, preprocessor_config.json) when
    the config is read, and stands for model.weights.vit where that is not given. Without it,
    ``settings`` says what config.json would.
    """

    path: str | None = None
    model_type: str = ""
    """transformers' name of the tower: clip_vision_model, dinov2, ..."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the tower's config class; what is left out has that class's default."""
    image_size: int = 0
    """Side of the tower's view in pixels; another than the one in settings needs a tower that
    resizes its position table."""
    patch_size: int = 0
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    state: int = -1
    """-1: the tower's last state; -2: the state before its last layer (LLaVA's choice with
    CLIP)."""


@dataclass
class AdaptorConfig:
    kind: AdaptorKind = AdaptorKind.hybrid_split
    grid: int | None = None
    """Side of the grid of visual tokens where SAM is the only tower; otherwise the other tower
    gives it."""
    train_sam_neck: bool = False
    """True: SAM's own neck trains with the adaptor, as the released code would (facts 1.2)."""


@dataclass
class TilingConfig:
    """Dynamic tiling (DeepSeek-VL2 section 2)."""

    max_tiles: int = 9
    """Most tiles of an image (18 for InfoVQA in the paper)."""
    max_tiled_images: int = 2
    """In a sample with more images, each has one tile."""
    rule: TilingRule = TilingRule.effective
    """How the grid is chosen: effective, as released; least_padding, as the paper words it."""


@dataclass
class LanguageConfig:
    """DeepSeek LLM: Llama's architecture, with ``mla`` and ``moe`` DeepSeek-V2's or V3's."""

    width: int = MISSING
    layers: int = MISSING
    heads: int = MISSING
    kv_heads: int = MISSING
    ffn: int = MISSING
    vocab_size: int = 102400
    max_positions: int = 16384
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    init_std: float = 0.006
    mla: MlaConfig | None = None
    """None: plain multi-head attention."""
    moe: MoeConfig | None = None
    """None: every layer is dense."""


@dataclass
class WeightsConfig:
    """Where each part's weights come from: a published directory. None: from init_from if set
    there, else freshly initialised (the run says so, and a part that does not train is then refused
    unless allow_random is set)."""

    sam: str | None = None
    siglip: str | None = None
    vit: str | None = None
    adaptor: str | None = None
    language: str | None = None
    allow_random: bool = False


@dataclass
class RecomputeConfig:
    """Activation checkpointing by part (non-reentrant). It costs no memory where nothing trains, so
    a part that does not need a gradient ignores it."""

    sam: Recompute = Recompute.none
    siglip: Recompute = Recompute.none
    vit: Recompute = Recompute.none
    adaptor: Recompute = Recompute.none
    language: Recompute = Recompute.none


@dataclass
class ModelConfig:
    name: str = MISSING
    family: str = "deepseek_vl"
    sam: SamConfig | None = None
    """None: no SAM (the published 1.3B has SigLIP alone)."""
    siglip: SiglipConfig | None = field(default_factory=SiglipConfig)
    vit: VitConfig | None = None
    adaptor: AdaptorConfig = field(default_factory=AdaptorConfig)
    tiling: TilingConfig | None = None
    """None: every image is one square."""
    language: LanguageConfig = field(default_factory=LanguageConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    tokenizer: str | None = None
    """Directory with tokenizer.json; default: the language weights' directory."""
    image_token: str = "<image_placeholder>"
    image_token_id: int = 100015
    attention: Attention = Attention.sdpa
    experts: ExpertsKind = ExpertsKind.grouped
    router: RouterConfig = field(default_factory=RouterConfig)
    loss_chunk_tokens: int = 2048
    """Labelled positions whose logits exist at one time."""
    activation_checkpointing: RecomputeConfig = field(default_factory=RecomputeConfig)
    encode_images_at_once: int = 8
    """Images that a frozen tower encodes at one time."""
    pad_color: list[int] = field(default_factory=lambda: [122, 116, 104])
    image_rounding: ImageRounding = ImageRounding.official
    sam_mean: list[float] = field(default_factory=lambda: [0.48145466, 0.4578275, 0.40821073])
    sam_std: list[float] = field(default_factory=lambda: [0.26862954, 0.26130258, 0.27577711])
    siglip_mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    siglip_std: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])

    @property
    def towers(self) -> tuple[str, ...]:
        """The towers that this model has, in the order in which the adaptor joins their channels:
        the published "high before low", and SigLIP last."""
        return tuple(t for t in ("sam", "vit", "siglip") if getattr(self, t) is not None)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that this model has, in ``PARTS`` order."""
        return tuple(p for p in PARTS if p not in TOWERS or p in self.towers)

    @property
    def image_side(self) -> int:
        """Side of the padded square that a worker hands over, in pixels: the largest view."""
        return max((getattr(self, tower).image_size for tower in self.towers), default=0)

    @property
    def visual_grid(self) -> int:
        """Side of the grid of a square's visual tokens: the patches of the tower that is not SAM,
        to which SAM's are down-sampled (24 at full size); where images are tiled, 2 x 2 patches
        make a token (14)."""
        patches = self.siglip if self.siglip is not None else self.vit
        if patches is None:
            return self.adaptor.grid or 0
        side = patch_grid(patches.image_size, patch_size=patches.patch_size)
        return side if self.tiling is None else -(-side // 2)

    @property
    def geometry(self) -> Geometry:
        """What says how many tokens an image costs."""
        if self.tiling is None:
            return FixedGeometry.of_grid(self.visual_grid)
        return TiledGeometry(
            tile_side=self.image_side,
            tokens_per_side=self.visual_grid,
            max_tiles=self.tiling.max_tiles,
            max_tiled_images=self.tiling.max_tiled_images,
            rule=self.tiling.rule,
        )

    @property
    def tokens_per_image(self) -> int:
        """Visual tokens of one square (576 at full size), which is an image where there are no
        tiles."""
        return self.visual_grid**2
