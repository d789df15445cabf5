"""Published layouts: what other people's files call our tensors, and how they hold them.

A layout is a table of rules, read in both directions: a published name to ours, and ours to the
published one. A stored tensor may be several of ours stacked along the first dimension (the
queries, keys and values of one projection), or carry a leading dimension of one. Tensors that a
published file stores and no forward pass reads (SigLIP's pooling head, two norms of the original
release) have names of ours too, so that they can be written back; see ``is_unused``.

The names of the original release are those of its code and of transformers' conversion of it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass

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
    dimension. leading_one: it has a dimension of one before ours."""

    theirs: str
    ours: tuple[str, ...]
    leading_one: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Names as templates: ``{n}`` is a number, ``{x}`` anything. See ``Stored``."""

    theirs: str
    ours: tuple[str, ...]
    leading_one: bool = False

    def stored(self, found: re.Match[str]) -> Stored:
        words = found.groupdict()
        return Stored(
            theirs=self.theirs.format(**words),
            ours=tuple(template.format(**words) for template in self.ours),
            leading_one=self.leading_one,
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
                # Its own spelling: that of an older rule is not the one that is written.
                return Stored(
                    theirs=theirs, ours=rule.stored(found).ours, leading_one=rule.leading_one
                )
        raise KeyError(theirs)

    def write(self, names: Iterable[str]) -> list[Stored]:
        """The published tensors that hold these names of ours, each once, in this order.

        Raises WeightsError naming those that the layout has no place for, and those whose
        companions in a stacked tensor are not among ``names``.
        """
        wanted = dict.fromkeys(names)
        found: dict[str, Stored] = {}
        homeless: list[str] = []
        for name in wanted:
            stored = self._holder(name)
            if stored is None or not set(stored.ours) <= wanted.keys():
                homeless.append(name)
            else:
                found.setdefault(stored.theirs, stored)
        if homeless:
            raise WeightsError(
                f"the published layout has no place for {len(homeless)} tensors: "
                f"{', '.join(homeless[:10])}{' ...' if len(homeless) > 10 else ''}. Only the "
                "released shapes of DeepSeek-VL can be exported to it"
            )
        return list(found.values())

    def _holder(self, name: str) -> Stored | None:
        for rule in self.rules:
            for template in rule.ours:
                found = _pattern(template).fullmatch(name)
                if found:
                    return rule.stored(found)
        return None


_DERIVED = ("rotary_emb.inv_freq", "embeddings.position_ids")
"""Endings of stored buffers that follow from the config: neither read nor written."""


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    literal = re.escape(template)
    return re.compile(literal.replace(r"\{n\}", r"(?P<n>\d+)").replace(r"\{x\}", r"(?P<x>.+)"))


def _rule(theirs: str, *ours: str, leading_one: bool = False) -> Rule:
    return Rule(theirs=theirs, ours=ours, leading_one=leading_one)


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

SEGMENT_ANYTHING = "segment_anything"
ORIGINAL_HYBRID = f"multi_modality with {HYBRID_TOWER}"
ORIGINAL = f"multi_modality with {SIGLIP_TOWER}"
LAYOUTS: dict[str, Layout] = {
    "sam": _SAM,
    "sam_vision_model": _SAM,
    SEGMENT_ANYTHING: Layout(rules=_segment_anything("image_encoder."), ignored=_SAM_DECODER),
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "llama": Layout(rules=_DECODER),
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


def published_tensors(names: Iterable[str], *, layout: str) -> list[Stored]:
    """The published tensors that hold our tensors ``names``, in their order; ``Stored.ours`` are
    names as given. Raises WeightsError as ``Layout.write`` does."""
    homes = {_own_neck_of_sam(name): name for name in names}
    return [
        Stored(
            theirs=stored.theirs,
            ours=tuple(homes[name] for name in stored.ours),
            leading_one=stored.leading_one,
        )
        for stored in LAYOUTS[layout].write(homes)
    ]


def _own_neck_of_sam(name: str) -> str:
    if name.startswith("adaptor.sam_neck."):
        return f"sam.neck.{name.removeprefix('adaptor.sam_neck.')}"
    return name
