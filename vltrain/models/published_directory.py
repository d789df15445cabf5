"""A published directory, opened: which of its tensors are ours, and under what names.

In: a directory with ``config.json`` and ``*.safetensors`` or ``pytorch_model*.bin``, in one file or
in shards, with an index or without; or segment-anything's single ``.pth``. Out: its tensors under
our full names, one stored tensor in memory at a time. Opening reads headers only.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vltrain.errors import WeightsError
from vltrain.models.config import ModelConfig
from vltrain.models.layouts import (
    EMBEDDING,
    HEAD,
    HYBRID_TOWER,
    LAYOUTS,
    ORIGINAL,
    ORIGINAL_HYBRID,
    SEGMENT_ANYTHING,
    SIGLIP_TOWER,
    Stored,
    place_own_neck,
)
from vltrain.models.tensor_files import TensorFile, open_tensors

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.(safetensors|bin)")
_SUFFIXES = {"safetensors": "*.safetensors", "bin": "pytorch_model*.bin"}
_STEMS = {"safetensors": "model", "bin": "pytorch_model"}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where one of our tensors lies: the ``share``-th of what ``stored`` holds, in ``file``."""

    file: Path
    stored: Stored
    share: int
    shape: tuple[int, ...]


class PublishedDirectory:
    """shapes: of every tensor of ours, unused ones too. unknown: published name -> shape of what no
    rule names, or what is there already. settings: its config.json. layout: among ``LAYOUTS``.

    Raises WeightsError where it is no such directory, lacks a shard, or a file is damaged.
    """

    def __init__(self, directory: Path, *, config: ModelConfig) -> None:
        self.directory = directory
        self.settings = read_settings(directory)
        self.layout = _layout_of(directory, self.settings)
        self.unknown: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, _Place] = {}
        self._open: tuple[Path, TensorFile] | None = None
        for file in _tensor_files(directory):
            for theirs, shape in self._opened(file).shapes.items():
                self._place(theirs, shape, file=file, config=config)
        if HEAD not in self._places and EMBEDDING in self._places and self._tied():
            self._places[HEAD] = self._places[EMBEDDING]
        self.shapes = {name: place.shape for name, place in self._places.items()}

    def tensors(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
        """(our full name, tensor as stored) of the tensors whose name is ``wanted``, file by file.

        A tied head is given as what it is tied to.
        """
        chosen: dict[Path, dict[str, list[tuple[str, _Place]]]] = {}
        for name, place in self._places.items():
            if wanted(name):
                of_file = chosen.setdefault(place.file, {})
                of_file.setdefault(place.stored.theirs, []).append((name, place))
        for file, of_file in chosen.items():
            opened = self._opened(file)
            for theirs, places in of_file.items():
                stored = opened.tensor(theirs)
                for name, place in places:
                    yield name, _share(stored, place)
                del stored

    def tensor(self, name: str) -> Tensor:
        """One tensor as stored, by our full name (among ``shapes``)."""
        place = self._places[name]
        return _share(self._opened(place.file).tensor(place.stored.theirs), place)

    def _opened(self, file: Path) -> TensorFile:
        """The last file stays open: tensors are mostly asked for file by file."""
        if self._open is None or self._open[0] != file:
            self._open = None  # before the next is opened: an old .bin lies in memory
            self._open = (file, open_tensors(file))
        return self._open[1]

    def _place(
        self, theirs: str, shape: tuple[int, ...], *, file: Path, config: ModelConfig
    ) -> None:
        try:
            stored = LAYOUTS[self.layout].read(theirs)
        except KeyError:
            self.unknown[theirs] = shape
            return
        if stored is None:
            return
        names = [place_own_neck(ours, config=config) for ours in stored.ours]
        if any(name in self._places for name in names):  # two spellings of one tensor
            self.unknown[theirs] = shape
            return
        for share, ours in enumerate(names):
            self._places[ours] = _Place(
                file=file, stored=stored, share=share, shape=_own_shape(shape, stored)
            )

    def _tied(self) -> bool:
        whole = {**self.settings, **_section(self.settings, "language_config")}
        return bool(whole.get("tie_word_embeddings", False))


def _own_shape(shape: tuple[int, ...], stored: Stored) -> tuple[int, ...]:
    """Of one of ours; the stored shape itself where it is not as the rule has it, which then does
    not fit either."""
    if stored.leading_one:
        return shape[1:] if shape[:1] == (1,) else shape
    shares = len(stored.ours)
    if shares > 1 and shape and shape[0] % shares == 0:
        return (shape[0] // shares, *shape[1:])
    return shape


def _share(stored: Tensor, place: _Place) -> Tensor:
    if place.stored.leading_one:
        return stored[0]
    shares = len(place.stored.ours)
    return stored if shares == 1 else stored.chunk(shares)[place.share]


def read_settings(directory: Path) -> dict[str, Any]:
    """config.json of a published directory (segment-anything has none, and is known by its file).
    Raises WeightsError where there is none, or it is damaged."""
    path = directory / "config.json"
    if not directory.is_dir():
        raise WeightsError(
            f"{directory} does not exist. Name where the weights are now with "
            "model.weights.PART=DIRECTORY"
        )
    if not path.is_file():
        if any(directory.glob("*.pth")):
            return {"model_type": SEGMENT_ANYTHING}
        raise WeightsError(
            f"{directory} is no published directory: it has no config.json. Expected what "
            "save_pretrained writes: config.json and *.safetensors"
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path} is damaged: {error}. Fetch it again") from error
    if not isinstance(settings, dict):
        raise WeightsError(f"{path} is damaged: expected an object. Fetch it again")
    return settings


def _section(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """Of a config.json; {} where it has none."""
    section = settings.get(name)
    return section if isinstance(section, dict) else {}


def _layout_of(directory: Path, settings: dict[str, Any]) -> str:
    model_type = str(settings.get("model_type"))
    if model_type == "multi_modality":
        tower = _section(settings, "vision_config").get("cls")
        kinds = {HYBRID_TOWER: ORIGINAL_HYBRID, SIGLIP_TOWER: ORIGINAL}
        if tower in kinds:
            return kinds[tower]
        raise WeightsError(
            f"{directory} is of model_type 'multi_modality' with vision_config.cls {tower!r}; "
            f"expected {' or '.join(map(repr, kinds))}: another model of that family"
        )
    if model_type not in LAYOUTS:
        known = [*(name for name in LAYOUTS if " " not in name), "multi_modality"]
        raise WeightsError(
            f"{directory} has model_type {model_type!r}; expected one of {', '.join(known)}"
        )
    return model_type


def _tensor_files(directory: Path) -> tuple[Path, ...]:
    """The files that hold the tensors: safetensors where there are any, else .bin, else .pth."""
    for suffix, glob in _SUFFIXES.items():
        index = directory / f"{_STEMS[suffix]}.{suffix}.index.json"
        if index.is_file():
            return _indexed(index)
        files = tuple(sorted(directory.glob(glob)))
        if files:
            _refuse_gaps(directory, files)
            return files
    files = tuple(sorted(directory.glob("*.pth")))
    if not files:
        raise WeightsError(
            f"{directory} has no *.safetensors file, and no pytorch_model*.bin either: fetch the "
            "weights beside its config.json"
        )
    return files


def _indexed(index: Path) -> tuple[Path, ...]:
    """The files that an index names. Raises WeightsError where one is not there."""
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        counted = Counter(str(name) for name in names.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{index} is damaged: no weight_map ({error}). Fetch it again"
        ) from error
    outside = [name for name in counted if Path(name).name != name]
    if outside:
        raise WeightsError(
            f"{index} names {outside[0]!r}: expected names of files beside it. Do not use weights "
            "of unknown origin"
        )
    absent = [name for name in sorted(counted) if not (index.parent / name).is_file()]
    if absent:
        told = ", ".join(f"{name} ({counted[name]} tensors)" for name in absent)
        raise WeightsError(
            f"{index.parent} lacks {told}, which {index.name} names: fetch what is missing"
        )
    return tuple(index.parent / name for name in sorted(counted))


def _refuse_gaps(directory: Path, files: tuple[Path, ...]) -> None:
    """Numbered shards say how many they are, also without an index."""
    present = {file.name for file in files}
    for file in files:
        named = _SHARD.fullmatch(file.name)
        if named is None:
            continue
        stem, _, total, suffix = named.groups()
        every = [f"{stem}-{n:05d}-of-{total}.{suffix}" for n in range(1, int(total) + 1)]
        absent = [name for name in every if name not in present]
        if absent:
            raise WeightsError(
                f"{directory} lacks {', '.join(absent)}: {file.name} says that there are "
                f"{int(total)} shards. Fetch what is missing"
            )
