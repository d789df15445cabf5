"""Floating-point operations of a step, counted from shapes.

In: the model's sizes as plain numbers, what trains, and what a step held. Out: operations per
part. Counting (not measuring) costs nothing in the step. One multiply-add is 2 operations; causal
attention counts half the square, and only inside a document; recomputation does not count; the
head counts only where there are targets. Element-wise work (norms, activations, resizing) is left
out.

One rule for the backward pass of everything linear: its forward once more if the weights train,
and once more if anything before it trains (then the gradient of its input is needed). Attention
has no weights: twice its forward as soon as either holds. Tokens before a document's first image
need no backward while the language model is frozen; that saving is not counted.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from vltrain.errors import ConfigError

PARTS = ("sam", "siglip", "adaptor", "language")


@dataclass(frozen=True, kw_only=True, slots=True)
class SamShape:
    """SAM's image encoder with its own neck."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    mlp_ratio: float
    window: int  # side, in patches, of a windowed layer's attention
    num_global_layers: int
    out_channels: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SiglipShape:
    image_size: int
    patch_size: int
    width: int
    layers: int
    ffn: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentShape:
    """Multi-head latent attention."""

    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertsShape:
    """Mixture of experts in all layers but the first ``dense_layers``."""

    experts: int
    per_token: int
    shared: int
    ffn: int
    dense_layers: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageShape:
    """Llama's layers, or with ``latent`` and ``experts`` DeepSeek-V2's."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab_size: int
    latent: LatentShape | None = None
    experts: ExpertsShape | None = None

    @property
    def block_parameters(self) -> int:
        """Weights of the layers' linear maps that a token meets (no norms, no embeddings; of the
        experts those that it is sent to and the shared ones)."""
        dense = 3 * self.width * self.ffn
        if self.experts is None:
            return self.layers * (self._attention_parameters + dense)
        moe = self.experts
        met = 3 * self.width * moe.ffn * (moe.per_token + moe.shared) + self.width * moe.experts
        sparse_layers = self.layers - moe.dense_layers
        attention = self.layers * self._attention_parameters
        return attention + moe.dense_layers * dense + sparse_layers * met

    @property
    def _attention_parameters(self) -> int:
        """Of one layer."""
        if self.latent is None:
            kv_width = self.width // self.heads * self.kv_heads
            return 2 * self.width * self.width + 2 * self.width * kv_width
        mla = self.latent
        queries = self.width * self.heads * (mla.nope_dim + mla.rope_dim)
        down = self.width * (mla.kv_rank + mla.rope_dim)
        up = mla.kv_rank * self.heads * (mla.nope_dim + mla.value_dim)
        return queries + down + up + self.heads * mla.value_dim * self.width

    @property
    def attention_width(self) -> int:
        """Width of all heads' queries and values together."""
        if self.latent is None:
            return 2 * self.width
        return self.heads * (self.latent.nope_dim + self.latent.rope_dim + self.latent.value_dim)

    @property
    def head_parameters(self) -> int:
        return self.vocab_size * self.width


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """``sam`` is None for the model with SigLIP alone. shuffles: the adaptor makes one token of
    2 x 2 patches (DeepSeek-VL2)."""

    sam: SamShape | None
    siglip: SiglipShape
    language: LanguageShape
    shuffles: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a step (or any batch) held; padding left out. squares: what the encoder saw, an image's
    tiles included."""

    squares: int
    tokens: int
    targets: int
    sum_squared_document_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Flops:
    """Operations, forward and backward together, by part."""

    sam: float
    siglip: float
    adaptor: float
    language: float

    @property
    def total(self) -> float:
        return self.sam + self.siglip + self.adaptor + self.language


def count_flops(shape: ModelShape, *, trained: Collection[str], work: Work) -> Flops:
    """Operations of one step over ``work`` while the parts ``trained`` learn.

    Raises ConfigError for an unknown part, or ``sam`` where the model has none.
    """
    parts = [p for p in PARTS if p != "sam" or shape.sam is not None]
    for part in trained:
        if part not in parts:
            raise ConfigError(
                f"cannot count part {part!r}; this model's parts are {', '.join(parts)}"
            )
    sam_trains, siglip_trains = "sam" in trained, "siglip" in trained
    sam = sam_forward(shape.sam) if shape.sam is not None else 0.0
    return Flops(
        sam=work.squares * sam * (3 if sam_trains else 1),
        siglip=work.squares * siglip_forward(shape.siglip) * (3 if siglip_trains else 1),
        adaptor=work.squares * _adaptor(shape, trained=trained),
        language=_language(shape.language, trained=trained, work=work),
    )


def sam_forward(shape: SamShape) -> float:
    """One image through SAM's encoder to its own neck (972.1e9 for SAM-B at 1024). Windowed layers
    pad the grid to whole windows; relative positions are two small products per layer."""
    grid = shape.image_size // shape.patch_size
    tokens, width = grid * grid, shape.width
    windows = -(-grid // shape.window)
    padded = (windows * shape.window) ** 2
    mlp = 2 * tokens * 2 * shape.mlp_ratio * width * width
    projections = 2 * 4 * width * width
    windowed = mlp + padded * (projections + 4 * shape.window**2 * width + 4 * shape.window * width)
    whole = mlp + tokens * (projections + 4 * tokens * width + 4 * grid * width)
    patches = 2 * tokens * 3 * shape.patch_size**2 * width
    layers = (shape.layers - shape.num_global_layers) * windowed + shape.num_global_layers * whole
    return layers + patches + _neck(shape)


def siglip_forward(shape: SiglipShape) -> float:
    """One image through SigLIP without its pooling head (381.4e9 for L/16 at 384)."""
    tokens, width = (shape.image_size // shape.patch_size) ** 2, shape.width
    linears = 2 * tokens * (4 * width * width + 2 * width * shape.ffn)
    attention = 4 * tokens * tokens * width
    return shape.layers * (linears + attention) + 2 * tokens * 3 * shape.patch_size**2 * width


def _neck(shape: SamShape) -> float:
    """SAM's neck, 1x1 then 3x3 convolution; the adaptor's second neck has the same shape."""
    tokens = (shape.image_size // shape.patch_size) ** 2
    return 2 * tokens * shape.out_channels * (shape.width + 9 * shape.out_channels)


def _convolutions(shape: ModelShape) -> tuple[float, float]:
    """The two 3x3 convolutions of stride 2 on the map that is resized to 4 x SigLIP's grid; each
    doubles the channels."""
    assert shape.sam is not None
    side = shape.siglip.image_size // shape.siglip.patch_size
    channels = shape.sam.out_channels
    first = 2 * (2 * side) ** 2 * 9 * channels * 2 * channels
    second = 2 * side**2 * 9 * 2 * channels * 4 * channels
    return first, second


def _adaptor(shape: ModelShape, *, trained: Collection[str]) -> float:
    """Forward and backward for one square."""
    trains = "adaptor" in trained
    side = shape.siglip.image_size // shape.siglip.patch_size
    tokens, channels = side**2, shape.siglip.width
    if shape.shuffles:
        tokens, channels = (-(-side // 2)) ** 2, 4 * channels
    width = shape.language.width

    def linear(forward: float, *, trains_before: bool) -> float:
        return forward * (1 + trains + trains_before)

    before_low = "siglip" in trained
    if shape.sam is None:
        first = linear(2 * tokens * channels * width, trains_before=before_low)
        return first + linear(2 * tokens * width * width, trains_before=trains or before_low)
    before_high = "sam" in trained
    conv_first, conv_second = _convolutions(shape)
    high_in, half = 4 * shape.sam.out_channels, width // 2
    return (
        linear(_neck(shape.sam), trains_before=before_high)
        + linear(conv_first, trains_before=before_high)  # branch of SAM's own neck
        + linear(conv_first + 2 * conv_second, trains_before=trains or before_high)
        + linear(2 * tokens * high_in * half, trains_before=trains or before_high)
        + linear(2 * tokens * shape.siglip.width * half, trains_before=before_low)
        + linear(2 * tokens * width * width, trains_before=trains or before_high or before_low)
    )


def _language(shape: LanguageShape, *, trained: Collection[str], work: Work) -> float:
    """Layers, causal attention and head, forward and backward. The embedding is its first weight,
    so every layer has something that trains before it as soon as the language model trains."""
    trains = "language" in trained
    gradients = bool(set(trained))
    linear = 2 * (shape.block_parameters * work.tokens + shape.head_parameters * work.targets)
    attention = shape.attention_width * shape.layers * work.sum_squared_document_tokens
    return linear * (1 + trains + gradients) + attention * (3 if gradients else 1)
