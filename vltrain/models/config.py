"""Config of the model. Values live in conf/model/; sizes follow the published configs (facts
1.8)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from vltrain.models.moe_config import ExpertsKind, MlaConfig, MoeConfig, RouterConfig
from vltrain.processing.geometry import FixedGeometry, Geometry, TiledGeometry
from vltrain.processing.tiling import TilingRule


class Attention(str, Enum):
    """Attention back ends of the language model; each isolates the documents of a pack."""

    sdpa = "sdpa"
    eager = "eager"


class AdaptorKind(str, Enum):
    hybrid_split = "hybrid_split"  # 7B: two projections, concat high first, GELU, Linear
    mlp = "mlp"  # 1.3B: Linear, GELU, Linear on SigLIP alone
    tiles = "tiles"  # VL2: pixel shuffle, Linear, GELU, Linear; newlines and a separator


class Activation(str, Enum):
    """SigLIP's activation."""

    gelu = "gelu"  # exact, as DeepSeek-VL runs it
    gelu_tanh = "gelu_tanh"  # its tanh approximation, as DeepSeek-VL2 does


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

    @property
    def side(self) -> int:
        """Patches along one side of its square; a rest that fills no patch is not seen."""
        return self.image_size // self.patch_size


@dataclass
class AdaptorConfig:
    kind: AdaptorKind = AdaptorKind.hybrid_split
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
    adaptor: str | None = None
    language: str | None = None
    allow_random: bool = False


@dataclass
class ModelConfig:
    name: str = MISSING
    family: str = "deepseek_vl"
    sam: SamConfig | None = None
    """None: SigLIP alone (the published 1.3B)."""
    siglip: SiglipConfig = field(default_factory=SiglipConfig)
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
    activation_checkpointing: bool = False
    """Recompute the language model's layers in the backward pass (non-reentrant)."""
    encode_images_at_once: int = 8
    """Images that a frozen tower encodes at one time."""
    pad_color: list[int] = field(default_factory=lambda: [122, 116, 104])
    sam_mean: list[float] = field(default_factory=lambda: [0.48145466, 0.4578275, 0.40821073])
    sam_std: list[float] = field(default_factory=lambda: [0.26862954, 0.26130258, 0.27577711])
    siglip_mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    siglip_std: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])

    @property
    def geometry(self) -> Geometry:
        """What says how many tokens an image costs."""
        if self.tiling is None:
            return FixedGeometry(tokens_per_image=self.tokens_per_image)
        return TiledGeometry(
            tile_side=self.siglip.image_size,
            tokens_per_side=-(-self.siglip.side // 2),
            max_tiles=self.tiling.max_tiles,
            max_tiled_images=self.tiling.max_tiled_images,
            rule=self.tiling.rule,
        )

    @property
    def image_side(self) -> int:
        """Side of the padded square that a worker hands over, in pixels."""
        return self.sam.image_size if self.sam is not None else self.siglip.image_size

    @property
    def tokens_per_square(self) -> int:
        """Visual tokens that the adaptor makes of one square (576; with tiling 196)."""
        return self.tokens_per_image if self.tiling is None else (-(-self.siglip.side // 2)) ** 2

    @property
    def tokens_per_image(self) -> int:
        """Visual tokens of one image without tiling: SigLIP's patches (576 at full size)."""
        return self.siglip.side**2
