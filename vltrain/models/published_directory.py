"""A published directory, opened: which of its tensors are ours, and under what names.

In: a directory with ``config.json`` and ``*.safetensors`` or ``pytorch_model*.bin``, in one file or
in shards, with an index or without; or segment-anything's single ``.pth``. Out: its tensors under
our full names, one stored tensor in memory at a time, and the stack of a layer's experts that it is
copied into. Opening reads headers only.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
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

_SHARD = re.compile(r"(.+)-(\d{5,})-of-(\d{5,})\.(safetensors|bin)")
_SUFFIXES = {"safetensors": "*.safetensors", "bin": "pytorch_model*.bin"}
_STEMS = {"safetensors": "model", "bin": "pytorch_model"}
SHOWN = 10
"""Tensors that a message shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where one of our tensors lies: the ``share``-th of what ``stored`` holds, in ``file``."""

    file: Path
    stored: Stored
    share: int
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Experts:
    """Where the shares of one of our tensors lie that stacks a layer's experts. faults: shares that
    are not there or not of the size of the others, in words."""

    shares: tuple[_Place, ...]
    shape: tuple[int, ...]
    faults: tuple[str, ...]


class PublishedDirectory:
    """shapes: of every tensor of ours, unused ones too. unknown: published name -> shape of what no
    rule names, or what is there already. incomplete: our name -> what is wrong with the published
    tensors that it is made of. settings: its config.json. layout: among ``LAYOUTS``.

    Raises WeightsError where it is no such directory, lacks a shard, or a file is damaged.
    """

    def __init__(self, directory: Path, *, config: ModelConfig) -> None:
        self.directory = directory
        self.settings = read_settings(directory)
        self.layout = _layout_of(directory, self.settings)
        self.unknown: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, _Place | _Experts] = {}
        self._open: tuple[Path, TensorFile] | None = None
        shares: dict[str, dict[str, _Place]] = {}
        for file in _tensor_files(directory):
            for theirs, shape in self._opened(file).shapes.items():
                self._place(theirs, shape, file=file, config=config, shares=shares)
        for name, of_name in shares.items():
            if name in self._places:  # stacked, and one by one too
                self.unknown |= {theirs: share.shape for theirs, share in of_name.items()}
            else:
                self._places[name] = _experts(name, list(of_name.values()), layout=self.layout)
        if HEAD not in self._places and EMBEDDING in self._places and self._tied():
            self._places[HEAD] = self._places[EMBEDDING]
        self.shapes = {name: place.shape for name, place in self._places.items()}
        self.incomplete = {
            name: place.faults
            for name, place in self._places.items()
            if isinstance(place, _Experts) and place.faults
        }

    def tensors(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
        """(our full name, tensor as stored) of the tensors whose name is ``wanted``, file by file.

        A tied head is given as what it is tied to. Raises WeightsError as ``tensor`` does.
        """
        chosen: dict[Path, dict[str, list[tuple[str, _Place]]]] = {}
        stacks: dict[Path, list[str]] = {}
        for name, place in self._places.items():
            if not wanted(name):
                continue
            if isinstance(place, _Experts):
                stacks.setdefault(place.shares[-1].file, []).append(name)
                continue
            of_file = chosen.setdefault(place.file, {})
            of_file.setdefault(place.stored.theirs, []).append((name, place))
        for file in sorted(chosen.keys() | stacks.keys()):
            for theirs, places in chosen.get(file, {}).items():
                stored = self._opened(file).tensor(theirs)
                for name, place in places:
                    yield name, _share(stored, place)
                del stored
            for name in stacks.get(file, []):
                yield name, self.tensor(name)

    def tensor(self, name: str) -> Tensor:
        """One tensor as stored, by our full name (among ``shapes``). Raises WeightsError for one
        that is ``incomplete``."""
        place = self._places[name]
        if isinstance(place, _Experts):
            return self._stacked(name, place)
        return _share(self._opened(place.file).tensor(place.stored.theirs), place)

    def _stacked(self, name: str, place: _Experts) -> Tensor:
        if place.faults:
            raise WeightsError(
                f"{self.directory} does not hold {name} whole: {', '.join(place.faults[:SHOWN])}"
            )
        stack: Tensor | None = None
        for share in place.shares:
            tensor = self._opened(share.file).tensor(share.stored.theirs)
            if stack is None:
                stack = torch.empty(place.shape, dtype=tensor.dtype)
            stack = stack.to(torch.promote_types(stack.dtype, tensor.dtype))  # mostly no copy
            assert share.stored.expert is not None, "a share of a layer's experts"
            row = stack[share.stored.expert]
            half = share.stored.half
            (row if half is None else row.chunk(2)[half]).copy_(tensor)
            del tensor  # before the next is read
        assert stack is not None, "a layer's experts have a share"
        return stack

    def _opened(self, file: Path) -> TensorFile:
        """The last file stays open: tensors are mostly asked for file by file."""
        if self._open is None or self._open[0] != file:
            self._open = None  # before the next is opened: an old .bin lies in memory
            self._open = (file, open_tensors(file))
        return self._open[1]

    def _place(
        self,
        theirs: str,
        shape: tuple[int, ...],
        *,
        file: Path,
        config: ModelConfig,
        shares: dict[str, dict[str, _Place]],
    ) -> None:
        """Note where a stored tensor lies; one expert's in ``shares``, by our name."""
        try:
            stored = LAYOUTS[self.layout].read(theirs)
        except KeyError:
            self.unknown[theirs] = shape
            return
        if stored is None:
            return
        names = [place_own_neck(ours, config=config) for ours in stored.ours]
        of_name = shares.setdefault(names[0], {}) if stored.expert is not None else {}
        if theirs in of_name or any(name in self._places for name in names):  # there already
            self.unknown[theirs] = shape
            return
        if stored.expert is not None:
            of_name[theirs] = _Place(file=file, stored=stored, share=0, shape=shape)
            return
        for share, ours in enumerate(names):
            self._places[ours] = _Place(
                file=file, stored=stored, share=share, shape=_own_shape(shape, stored)
            )

    def _tied(self) -> bool:
        whole = {**self.settings, **_section(self.settings, "language_config")}
        return bool(whole.get("tie_word_embeddings", False))


def _experts(name: str, shares: Sequence[_Place], *, layout: str) -> _Experts:
    """A layer's stack, as large as its highest expert and the first share say."""
    first = shares[0]
    experts = 1 + max(share.stored.expert or 0 for share in shares)
    halves = 1 if first.stored.half is None else 2
    shape = (experts, *(halves * rows for rows in first.shape[:1]), *first.shape[1:])
    found = {share.stored.theirs for share in shares}
    faults = [
        f"missing {stored.theirs} {first.shape}"
        for stored in LAYOUTS[layout].write({name: shape})
        if stored.theirs not in found
    ]
    faults += [
        f"mis-shaped {share.stored.theirs}: found {share.shape}, expected {first.shape}"
        for share in shares
        if share.shape != first.shape
    ]
    return _Experts(shares=tuple(shares), shape=shape, faults=tuple(faults))


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
