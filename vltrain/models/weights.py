"""Published weights into our parts, every tensor accounted for; and what identifies a weight.

In: published directories by part (see ``published_directory``). Out: the parameters of those parts,
cast to the part's type, and the corrections of routers; one stored tensor in memory at a time (a
file at a time where it cannot be mapped, and a layer's experts where they are stored one by one).
Nothing is filled before everything was found to fit. Digests are xxh3-128 over type, shape
and bytes: they prove that frozen parts did not change and tie a run to the base weights that it
started from.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from vltrain.errors import WeightsError
from vltrain.models.build import BuiltModel
from vltrain.models.config import ModelConfig
from vltrain.models.layouts import is_unused, place_own_neck
from vltrain.models.published_settings import setting_differences, training_differences
from vltrain.models.published_vit import Published, open_published
from vltrain.models.trainable import part_of, parts_of

log = logging.getLogger(__name__)

SHOWN = 10
"""Tensors of one kind of fault that a message shows."""


def load_weights(
    built: BuiltModel,
    *,
    directories: Mapping[str, str | Path],
    filled_later: Collection[str] = (),
) -> None:
    """Copy published weights into the parts that ``directories`` names (part -> directory).

    An adaptor without a directory of its own takes its second neck from SAM's directory (see
    ``neck_source``), unless it is ``filled_later``: a parameter is filled once, because filling may
    share it out over the ranks. Raises WeightsError naming every tensor, of all directories, that
    is missing, unexpected or of another shape, and every setting that makes it another model. Warns
    of settings that the run trains otherwise.
    """
    parts_at: dict[Path, list[str]] = {}
    for part, directory in directories.items():
        parts_at.setdefault(Path(directory), []).append(part)
    fresh_adaptor = "adaptor" not in directories and "adaptor" not in filled_later
    shapes = {name: tuple(tensor.shape) for name, tensor in built.named_tensors()}
    opened: list[tuple[Published, dict[str, list[str]]]] = []
    faults: list[str] = []
    for directory, parts in parts_at.items():
        # A vit's directory holds nothing else.
        part = "vit" if "vit" in parts else parts[0]
        published = open_published(directory, config=built.config, part=part)
        necks = shapes if fresh_adaptor and "sam" in parts else ()
        targets = _targets(shapes, parts=parts, necks=necks, config=built.config)
        expected = {name: shapes[filled[0]] for name, filled in targets.items()}
        found = _faults(published, expected, parts=parts, config=built.config)
        if found:
            named = ", ".join(map(repr, parts))
            faults.append(
                f"{directory} does not fit part{'s' if len(parts) > 1 else ''} {named} of model "
                f"{built.config.name!r}:\n  " + "\n  ".join(found)
            )
        opened.append((published, targets))
    if faults:
        raise WeightsError(
            "\n".join(faults)
            + "\nGive model.weights.PART a directory of this shape, or choose another model"
        )
    trained = {part_of(name) for name in built.trainable}
    for published, targets in opened:
        if "language" in trained.intersection(map(part_of, targets)):
            for difference in training_differences(published.settings, config=built.config):
                log.warning("%s: %s", published.directory, difference)
        for name, tensor in published.tensors(targets.__contains__):
            for target in targets[name]:
                built.fill(target, tensor)
            del tensor  # before the next is read


def neck_source(name: str, *, config: ModelConfig) -> str | None:
    """The name under which SAM's directory holds what an adaptor parameter begins with where the
    adaptor has no weights of its own: both necks of the adaptor begin as SAM's. None for others."""
    for prefix in ("adaptor.neck.", "adaptor.sam_neck."):
        if name.startswith(prefix):
            return place_own_neck(f"sam.neck.{name.removeprefix(prefix)}", config=config)
    return None


def published_digests(config: ModelConfig, *, part: str, directory: str | Path) -> dict[str, str]:
    """``tensor_digests`` of a part as it is stored in a published directory, whatever type a run
    casts it to: what a manifest records of a base weight."""
    published = open_published(Path(directory), config=config, part=part)
    return tensor_digests(
        published.tensors(lambda name: part_of(name) == part and not is_unused(name))
    )


def tensor_digests(named: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """name -> ``tensor_digest``."""
    return {name: tensor_digest(tensor) for name, tensor in named}


def tensor_digest(tensor: Tensor) -> str:
    """xxh3-128 (hex) of type, shape and bytes. Copies the tensor to the CPU."""
    data = tensor.detach().reshape(-1).contiguous().view(torch.uint8).cpu()
    state = xxhash.xxh3_128(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    state.update(data.numpy().data)
    return state.hexdigest()


def part_digest(digests: Mapping[str, str]) -> str:
    """One xxh3-128 (hex) for all tensors of a part, whatever their order."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return xxhash.xxh3_128(lines.encode()).hexdigest()


def _targets(
    names: Iterable[str], *, parts: Collection[str], necks: Iterable[str], config: ModelConfig
) -> dict[str, list[str]]:
    """Our full name of a stored tensor -> the parameters that it fills. necks: names among which
    are those that begin as SAM's neck."""
    targets = {name: [name] for name in names if part_of(name) in parts}
    for name in necks:
        source = neck_source(name, config=config)
        if source is not None:
            targets.setdefault(source, []).append(name)
    return targets


def _faults(
    published: Published,
    expected: Mapping[str, tuple[int, ...]],
    *,
    parts: Collection[str],
    config: ModelConfig,
) -> list[str]:
    """What keeps a directory from covering ``expected`` exactly, in words."""
    # A directory that every part comes from is a whole model: it must not hold another part.
    whole = set(parts) == set(parts_of(config))
    missing, unexpected, mis_shaped = [], [], []
    for name, shape in published.shapes.items():
        own = expected.get(name)
        if own is None and not is_unused(name) and (whole or part_of(name) in parts):
            unexpected.append(f"unexpected {name} {shape}")
        elif own is not None and shape != own:
            mis_shaped.append(f"mis-shaped {name}: found {shape}, expected {own}")
    unexpected += [
        f"unexpected {name} {shape} (no tensor of a {published.layout!r})"
        for name, shape in published.unknown.items()
    ]
    for name in sorted(expected.keys() - published.shapes.keys()):
        missing.append(f"missing {name} {expected[name]}")
    for name in sorted(expected.keys() & published.incomplete.keys()):
        for fault in published.incomplete[name]:
            (missing if fault.startswith("missing") else mis_shaped).append(fault)
    settings = [
        difference
        for part in parts
        for difference in setting_differences(published.settings, part=part, config=config)
    ]
    return [*settings, *_some(missing), *_some(unexpected), *_some(mis_shaped)]


def _some(lines: list[str]) -> list[str]:
    more = [f"and {len(lines) - SHOWN} more {lines[0].split()[0]}"] if len(lines) > SHOWN else []
    return [*lines[:SHOWN], *more]
