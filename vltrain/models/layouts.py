"""Published layouts: what other people's files call our tensors.

In: a directory with ``config.json`` and safetensors, as ``save_pretrained`` writes it: SAM,
SigLIP, Llama, or a whole transformers DeepSeek-VL. Out: its tensors under our full names, one in
memory at a time, and the same table read backwards for export. A tensor that no rule names is an
error: nothing is skipped in silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vltrain.errors import WeightsError
from vltrain.models.config import ModelConfig

EMBEDDING = "language.model.embed_tokens.weight"
HEAD = "language.lm_head.weight"


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How one published format names our parts.

    renames: (published prefix, ours); the first that fits reads, the last that fits writes.
    ignored: prefixes, in their names, of tensors that DeepSeek-VL does not use.
    """

    renames: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...] = ()

    def ours(self, theirs: str) -> str | None:
        """Our full name of a published tensor; None where it is not one of ours."""
        if theirs.startswith(self.ignored) or theirs.endswith("rotary_emb.inv_freq"):
            return None
        for prefix, ours in self.renames:
            if theirs.startswith(prefix):
                return ours + theirs.removeprefix(prefix)
        raise KeyError(theirs)

    def theirs(self, ours: str) -> str:
        """The published name of our tensor."""
        for prefix, ours_prefix in reversed(self.renames):
            if ours.startswith(ours_prefix):
                return prefix + ours.removeprefix(ours_prefix)
        raise KeyError(ours)


_SAM = Layout(
    renames=(("vision_encoder.", "sam."),),
    ignored=("prompt_encoder.", "mask_decoder.", "shared_image_embedding."),
)
_SIGLIP = Layout(
    renames=(
        ("vision_model.", "siglip."),
        ("embeddings.", "siglip.embeddings."),
        ("encoder.", "siglip.encoder."),
        ("post_layernorm.", "siglip.post_layernorm."),
    ),
    ignored=("vision_model.head.", "head.", "text_model.", "logit_scale", "logit_bias"),
)
_LLAMA = Layout(renames=(("model.", "language.model."), ("lm_head.", "language.lm_head.")))
_DEEPSEEK_VL = Layout(
    renames=(
        ("model.vision_model.vision_model.", "siglip."),  # hub checkpoints of before transformers 5
        ("model.vision_model.", "siglip."),
        ("model.aligner.", "adaptor.aligner."),
        ("model.language_model.", "language.model."),
        ("lm_head.", "language.lm_head."),
    ),
    ignored=("model.vision_model.vision_model.head.", "model.vision_model.head."),
)
_DEEPSEEK_VL_HYBRID = Layout(
    renames=(
        ("model.high_res_vision_model.vision_encoder.", "sam."),
        ("model.high_res_vision_neck.", "adaptor.neck."),
        ("model.high_res_vision_proj.", "adaptor.downsample."),
        ("model.high_res_vision_alpha", "adaptor.alpha"),
        *_DEEPSEEK_VL.renames,
    ),
    ignored=_DEEPSEEK_VL.ignored,
)

LAYOUTS: dict[str, Layout] = {
    "sam": _SAM,
    "sam_vision_model": _SAM,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "llama": _LLAMA,
    "deepseek_vl": _DEEPSEEK_VL,
    "deepseek_vl_hybrid": _DEEPSEEK_VL_HYBRID,
}
"""By ``model_type`` of the directory's config.json."""


class PublishedDirectory:
    """A published directory, opened: which of its tensors are ours, and under what names.

    Raises WeightsError where it is no such directory, is damaged, or holds tensors that no rule
    names.
    """

    def __init__(self, directory: Path, *, config: ModelConfig) -> None:
        self.directory = directory
        self._config_json = _read_config(directory)
        model_type = str(self._config_json.get("model_type"))
        if model_type not in LAYOUTS:
            raise WeightsError(
                f"{directory} has model_type {model_type!r}; expected one of {', '.join(LAYOUTS)}"
            )
        self._names: dict[Path, dict[str, str]] = {}
        unknown: list[str] = []
        for file, stored in _stored_names(directory).items():
            self._names[file] = {}
            for theirs in stored:
                try:
                    ours = LAYOUTS[model_type].ours(theirs)
                except KeyError:
                    unknown.append(theirs)
                    continue
                if ours is not None:
                    self._names[file][theirs] = place_own_neck(ours, config=config)
        if unknown:
            raise WeightsError(
                f"{directory} holds tensors that a {model_type!r} does not have: "
                f"{', '.join(unknown[:10])}{' ...' if len(unknown) > 10 else ''}. "
                "Is model_type in its config.json right?"
            )

    def tensors(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
        """(our full name, tensor as stored) of the tensors whose name is ``wanted``.

        A tied head is given as what it is tied to.
        """
        names = {ours for file in self._names.values() for ours in file.values()}
        tied = HEAD not in names and bool(self._config_json.get("tie_word_embeddings", False))
        for file, ours_of in self._names.items():
            chosen = [(ours, theirs) for theirs, ours in ours_of.items() if wanted(ours)]
            if tied and wanted(HEAD):
                chosen += [(HEAD, theirs) for theirs, ours in ours_of.items() if ours == EMBEDDING]
            if chosen:
                with safe_open(file, framework="pt") as tensors:
                    for ours, theirs in chosen:
                        yield ours, tensors.get_tensor(theirs)

    def tensor(self, name: str) -> Tensor | None:
        """One tensor as stored, by our full name; None where the directory has none of it."""
        return next((tensor for _, tensor in self.tensors(lambda ours: ours == name)), None)


def place_own_neck(name: str, *, config: ModelConfig) -> str:
    """SAM's own neck is a tensor of the adaptor where the adaptor trains it."""
    if config.adaptor.train_sam_neck and name.startswith("sam.neck."):
        return f"adaptor.sam_neck.{name.removeprefix('sam.neck.')}"
    return name


def published_name(name: str, *, model_type: str) -> str:
    """Our full name -> the name in a whole published DeepSeek-VL (or another layout)."""
    if name.startswith("adaptor.sam_neck."):
        name = f"sam.neck.{name.removeprefix('adaptor.sam_neck.')}"
    return LAYOUTS[model_type].theirs(name)


def _read_config(directory: Path) -> dict[str, object]:
    path = directory / "config.json"
    if not path.is_file():
        raise WeightsError(
            f"{directory} is no published directory: it has no config.json. Expected what "
            "save_pretrained writes: config.json and *.safetensors"
        )
    return json.loads(path.read_text())


def _stored_names(directory: Path) -> dict[Path, list[str]]:
    """The names of the tensors in every file."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise WeightsError(
            f"{directory} has no *.safetensors file. Convert other formats first: load them with "
            "transformers, then save_pretrained"
        )
    stored: dict[Path, list[str]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                stored[file] = list(tensors.keys())
        except SafetensorError as error:
            raise WeightsError(f"{file} is damaged: {error}. Fetch it again") from error
    return stored
