"""Published layouts: what other people's files call our tensors, and how they hold them.

A layout is a table of rules, read in both directions: a published name to ours, and ours to the
published one. A stored tensor may be several of ours stacked along the first dimension (the
queries, keys and values of one projection), or carry a leading dimension of one; or it may be one
expert's share of ours, which stacks all of a layer's. Tensors that a published file stores and no
forward pass reads (SigLIP's pooling head, two norms of the original release) have names of ours
too, so that they can be written back; see ``is_unused``.

The names of the original release are those of its code and of transformers' conversion of it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vltrain.errors import WeightsError
from vltrain.models.config import ModelConfig

EMBEDDING = "language.model.embed_tokens.weight"
HEAD = "language.lm_head.weight"
UNUSED = ("siglip.head.", "siglip.unused_norm.", "sam.unused_norm.")
"""Prefixes of our names for tensors that are stored and never used."""
HYBRID_TOWER, SIGLIP_TOWER = "HybridVisionTower", "CLIPVisionTower"
"""vision_config.cls of the original release."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """One published tensor. ours: the names that it holds, stacked in equal shares along its first
    dimension. leading_one: it has a dimension of one before ours. expert: it is this row of ours,
    or where there is a ``half``, the first or second half of that row."""

    theirs: str
    ours: tuple[str, ...]
    leading_one: bool = False
    expert: int | None = None
    half: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Names as templates: ``{n}`` is a number, ``{e}`` an expert's, ``{x}`` anything. See
    ``Stored``."""

    theirs: str
    ours: tuple[str, ...]
    leading_one: bool = False
    half: int | None = None

    @property
    def of_experts(self) -> bool:
        return "{e}" in self.theirs

    def stored(self, words: Mapping[str, str]) -> Stored:
        """``words``: what stands for the templates' letters."""
        return Stored(
            theirs=self.theirs.format(**words),
            ours=tuple(template.format(**words) for template in self.ours),
            leading_one=self.leading_one,
            expert=int(words["e"]) if self.of_experts else None,
            half=self.half,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How one published format names our parts.

    rules: read and written. also_read: older spellings. ignored: prefixes, in their names, of
    tensors of another model that DeepSeek-VL has no place for.
    """

    rules: tuple[Rule, ...]
    also_read: tuple[Rule, ...] = ()
    ignored: tuple[str, ...] = ()

    def read(self, theirs: str) -> Stored | None:
        """What a stored tensor holds; None where it is none of ours. Raises KeyError for a name
        that no rule has."""
        if theirs.startswith(self.ignored) or theirs.endswith(_DERIVED):
            return None
        for rule in (*self.rules, *self.also_read):
            found = _pattern(rule.theirs).fullmatch(theirs)
            if found:
                return rule.stored(found.groupdict())
        raise KeyError(theirs)

    def write(self, shapes: Mapping[str, tuple[int, ...]]) -> list[Stored]:
        """The published tensors that hold ours, by name with shapes, each once, in this order.

        Raises WeightsError naming those that the layout has no place for, and those whose
        companions in a stacked tensor are not among ``shapes``.
        """
        found: dict[str, Stored] = {}
        homeless: list[str] = []
        for name, shape in shapes.items():
            holders = self._holders(name, shape)
            if not holders or not set(holders[0].ours) <= shapes.keys():
                homeless.append(name)
            for stored in holders:
                found.setdefault(stored.theirs, stored)
        if homeless:
            raise WeightsError(
                f"the published layout has no place for {len(homeless)} tensors: "
                f"{', '.join(homeless[:10])}{' ...' if len(homeless) > 10 else ''}. Only the "
                "released shapes of DeepSeek-VL and DeepSeek-VL2 can be exported to it"
            )
        return list(found.values())

    def _holders(self, name: str, shape: tuple[int, ...]) -> list[Stored]:
        matching = [
            (rule, found.groupdict())
            for rule in self.rules
            for template in rule.ours
            if (found := _pattern(template).fullmatch(name))
        ]
        shared = [(rule, words) for rule, words in matching if rule.of_experts]
        if shared:
            experts = range(shape[0])
            return [rule.stored({**words, "e": str(e)}) for e in experts for rule, words in shared]
        return [rule.stored(words) for rule, words in matching[:1]]


_DERIVED = ("rotary_emb.inv_freq", "embeddings.position_ids")
"""Endings of stored buffers that follow from the config: neither read nor written."""


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    literal = re.escape(template)
    for letter, expression in (("n", r"\d+"), ("e", r"\d+"), ("x", ".+")):
        literal = literal.replace(rf"\{{{letter}\}}", f"(?P<{letter}>{expression})")
    return re.compile(literal)


def _rule(theirs: str, *ours: str, leading_one: bool = False, half: int | None = None) -> Rule:
    return Rule(theirs=theirs, ours=ours, leading_one=leading_one, half=half)


def _neck(theirs: str, ours: str) -> tuple[Rule, ...]:
    """segment-anything numbers the layers of a neck."""
    layers = ("conv1", "layer_norm1", "conv2", "layer_norm2")
    return tuple(
        _rule(f"{theirs}.{number}.{{x}}", f"{ours}.{layer}.{{x}}")
        for number, layer in enumerate(layers)
    )


def _segment_anything(prefix: str) -> tuple[Rule, ...]:
    """SAM's image encoder as segment-anything names it."""
    return (
        _rule(prefix + "pos_embed", "sam.pos_embed"),
        _rule(prefix + "patch_embed.proj.{x}", "sam.patch_embed.projection.{x}"),
        _rule(prefix + "blocks.{n}.norm1.{x}", "sam.layers.{n}.layer_norm1.{x}"),
        _rule(prefix + "blocks.{n}.norm2.{x}", "sam.layers.{n}.layer_norm2.{x}"),
        _rule(prefix + "blocks.{n}.attn.{x}", "sam.layers.{n}.attn.{x}"),
        _rule(prefix + "blocks.{n}.mlp.{x}", "sam.layers.{n}.mlp.{x}"),
        *_neck(prefix + "neck", "sam.neck"),
    )


def _timm(prefix: str) -> tuple[Rule, ...]:
    """SigLIP as timm's vision transformer names it."""
    layer, head = "siglip.encoder.layers.{n}", "siglip.head"
    projections = (f"{layer}.self_attn.{part}_proj.{{x}}" for part in "qkv")
    pooled = (f"{head}.attention.{part}.{{x}}" for part in "kv")
    return (
        _rule(
            prefix + "pos_embed",
            "siglip.embeddings.position_embedding.weight",
            leading_one=True,
        ),
        _rule(prefix + "patch_embed.proj.{x}", "siglip.embeddings.patch_embedding.{x}"),
        _rule(prefix + "blocks.{n}.norm1.{x}", f"{layer}.layer_norm1.{{x}}"),
        _rule(prefix + "blocks.{n}.norm2.{x}", f"{layer}.layer_norm2.{{x}}"),
        _rule(prefix + "blocks.{n}.attn.qkv.{x}", *projections),
        _rule(prefix + "blocks.{n}.attn.proj.{x}", f"{layer}.self_attn.out_proj.{{x}}"),
        _rule(prefix + "blocks.{n}.mlp.{x}", f"{layer}.mlp.{{x}}"),
        _rule(prefix + "norm.{x}", "siglip.post_layernorm.{x}"),
        _rule(prefix + "attn_pool.latent", f"{head}.probe"),
        _rule(prefix + "attn_pool.q.{x}", f"{head}.attention.q.{{x}}"),
        _rule(prefix + "attn_pool.kv.{x}", *pooled),
        _rule(prefix + "attn_pool.proj.{x}", f"{head}.attention.out_proj.{{x}}"),
        _rule(prefix + "attn_pool.norm.{x}", f"{head}.layernorm.{{x}}"),
        _rule(prefix + "attn_pool.mlp.{x}", f"{head}.mlp.{{x}}"),
    )


def _siglip(prefix: str) -> tuple[Rule, ...]:
    """SigLIP's image encoder as transformers names it."""
    head = "siglip.head.attention"
    stacked = (f"{head}.{part}.{{x}}" for part in "qkv")
    return (
        _rule(prefix + "embeddings.{x}", "siglip.embeddings.{x}"),
        _rule(prefix + "encoder.{x}", "siglip.encoder.{x}"),
        _rule(prefix + "post_layernorm.{x}", "siglip.post_layernorm.{x}"),
        _rule(prefix + "head.attention.in_proj_{x}", *stacked),
        _rule(prefix + "head.{x}", "siglip.head.{x}"),
    )


def _experts(theirs: str) -> tuple[Rule, ...]:
    """Routed experts, published one by one; ours stack a layer's (gate above up)."""
    one, all_of_layer = "layers.{n}.mlp.experts.{e}", "language.model.layers.{n}.mlp.experts"
    return (
        _rule(f"{theirs}{one}.gate_proj.weight", f"{all_of_layer}.gate_up_proj", half=0),
        _rule(f"{theirs}{one}.up_proj.weight", f"{all_of_layer}.gate_up_proj", half=1),
        _rule(f"{theirs}{one}.down_proj.weight", f"{all_of_layer}.down_proj"),
    )


_DECODER = (
    _rule("model.{x}", "language.model.{x}"),
    _rule("lm_head.{x}", "language.lm_head.{x}"),
)
_ORIGINAL_DECODER = (_rule("language_model.{x}", "language.{x}"),)
_SAM_DECODER = ("prompt_encoder.", "mask_decoder.", "shared_image_embedding.")
_SAM = Layout(rules=(_rule("vision_encoder.{x}", "sam.{x}"),), ignored=_SAM_DECODER)
_SIGLIP = Layout(
    rules=_siglip(""),
    also_read=_siglip("vision_model."),
    ignored=("text_model.", "logit_scale", "logit_bias"),
)
_DEEPSEEK_VL = Layout(
    rules=(
        *_siglip("model.vision_model."),
        _rule("model.aligner.{x}", "adaptor.aligner.{x}"),
        _rule("model.language_model.{x}", "language.model.{x}"),
        _rule("lm_head.{x}", "language.lm_head.{x}"),
    ),
    also_read=_siglip("model.vision_model.vision_model."),  # checkpoints of before transformers 5
)
_DEEPSEEK_VL_HYBRID = Layout(
    rules=(
        _rule("model.high_res_vision_model.vision_encoder.{x}", "sam.{x}"),
        _rule("model.high_res_vision_neck.{x}", "adaptor.neck.{x}"),
        _rule("model.high_res_vision_proj.{x}", "adaptor.downsample.{x}"),
        _rule("model.high_res_vision_alpha", "adaptor.alpha"),
        *_DEEPSEEK_VL.rules,
    ),
    also_read=_DEEPSEEK_VL.also_read,
)
_HIGH, _LOW = (f"vision_model.vision_tower_{tower}.vision_tower." for tower in ("high", "low"))
_ORIGINAL_HYBRID = Layout(
    rules=(
        *_segment_anything(_HIGH),
        *_neck(_HIGH + "neck_hd", "adaptor.neck"),
        _rule(_HIGH + "downsamples.0.{x}", "adaptor.downsample.conv1.{x}"),
        _rule(_HIGH + "downsamples.1.{x}", "adaptor.downsample.conv2.{x}"),
        _rule(_HIGH + "hd_alpha_downsamples", "adaptor.alpha"),
        *_timm(_LOW),
        _rule("vision_model.high_layer_norm.{x}", "sam.unused_norm.{x}"),
        _rule("vision_model.low_layer_norm.{x}", "siglip.unused_norm.{x}"),
        _rule("aligner.high_up_proj.{x}", "adaptor.aligner.high_res_vision_proj.{x}"),
        _rule("aligner.low_up_proj.{x}", "adaptor.aligner.vision_proj.{x}"),
        _rule("aligner.layers.1.{x}", "adaptor.aligner.proj.{x}"),
        *_ORIGINAL_DECODER,
    ),
)
_ORIGINAL = Layout(
    rules=(
        *_timm("vision_model.vision_tower."),
        _rule("aligner.layers.0.{x}", "adaptor.aligner.linear1.{x}"),
        _rule("aligner.layers.2.{x}", "adaptor.aligner.linear2.{x}"),
        *_ORIGINAL_DECODER,
    ),
)

_DEEPSEEK = Layout(rules=(*_experts("model."), *_DECODER))
_DEEPSEEK_VL2 = Layout(
    rules=(
        *_timm("vision."),
        _rule("projector.layers.0.{x}", "adaptor.linear1.{x}"),
        _rule("projector.layers.2.{x}", "adaptor.linear2.{x}"),
        _rule("image_newline", "adaptor.image_newline"),
        _rule("view_seperator", "adaptor.view_separator"),  # as the release spells it
        *_experts("language.model."),
        _rule("language.{x}", "language.{x}"),
    ),
)

SEGMENT_ANYTHING = "segment_anything"
DEEPSEEK_VL2 = "deepseek_vl_v2"
DEEPSEEK_LANGUAGE = ("deepseek", "deepseek_v2", "deepseek_v3")
"""DeepSeekMoE, which has plain attention, and the two with latent attention."""
ORIGINAL_HYBRID = f"multi_modality with {HYBRID_TOWER}"
ORIGINAL = f"multi_modality with {SIGLIP_TOWER}"
LAYOUTS: dict[str, Layout] = {
    "sam": _SAM,
    "sam_vision_model": _SAM,
    SEGMENT_ANYTHING: Layout(rules=_segment_anything("image_encoder."), ignored=_SAM_DECODER),
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "llama": Layout(rules=_DECODER),
    **dict.fromkeys(DEEPSEEK_LANGUAGE, _DEEPSEEK),
    DEEPSEEK_VL2: _DEEPSEEK_VL2,
    "deepseek_vl": _DEEPSEEK_VL,
    "deepseek_vl_hybrid": _DEEPSEEK_VL_HYBRID,
    ORIGINAL: _ORIGINAL,
    ORIGINAL_HYBRID: _ORIGINAL_HYBRID,
}
"""By ``model_type`` of the directory's config.json; the original release has one for two, and
segment-anything has no config.json at all."""


def is_unused(name: str) -> bool:
    """Whether our name is of a tensor that is stored and never used: no parameter of the model."""
    return name.startswith(UNUSED)


def place_own_neck(name: str, *, config: ModelConfig) -> str:
    """SAM's own neck is a tensor of the adaptor where the adaptor trains it."""
    if config.adaptor.train_sam_neck and name.startswith("sam.neck."):
        return f"adaptor.sam_neck.{name.removeprefix('sam.neck.')}"
    return name


def published_tensors(shapes: Mapping[str, tuple[int, ...]], *, layout: str) -> list[Stored]:
    """The published tensors that hold ours, by name with ``shapes``, in their order;
    ``Stored.ours`` are names as given. Raises WeightsError as ``Layout.write`` does."""
    homes = {_own_neck_of_sam(name): name for name in shapes}
    found = LAYOUTS[layout].write({home: shapes[name] for home, name in homes.items()})
    return [replace(stored, ours=tuple(homes[name] for name in stored.ours)) for stored in found]


def _own_neck_of_sam(name: str) -> str:
    if name.startswith("adaptor.sam_neck."):
        return f"sam.neck.{name.removeprefix('adaptor.sam_neck.')}"
    return name


def stored_shape(stored: Stored, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a published tensor. shapes: of ours."""
    own = [shapes[name] for name in stored.ours]
    if stored.expert is not None:
        rows = own[0][1:]
        return rows if stored.half is None else (rows[0] // 2, *rows[1:])
    if stored.leading_one:
        return (1, *own[0])
    return (sum(shape[0] for shape in own), *own[0][1:]) if len(own) > 1 else own[0]


def stored_tensor(stored: Stored, own: Callable[[str], Tensor]) -> Tensor:
    """A published tensor. own: reads ours by name."""
    tensors = [own(name) for name in stored.ours]
    if stored.expert is not None:
        row = tensors[0][stored.expert]
        return row if stored.half is None else row.chunk(2)[stored.half]
    tensor = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
    return tensor[None] if stored.leading_one else tensor
