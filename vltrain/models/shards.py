"""Weights to safetensors, tensor by tensor: a shard is never in memory.

In: names with shapes, and a reader of each tensor. Out: ``model.safetensors``, or numbered shards
and their index, as ``save_pretrained`` names them. Memory: one tensor and its copy in the written
type. Every value is checked on its way: weights that are not finite are refused, and what was
written of them is removed. Rejected: ``save_file``, which takes a whole shard at once; to check
before the first byte is written, which reads everything twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vltrain.errors import WeightsError
from vltrain.models.finite import all_finite, count_not_finite

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""What safetensors calls the types that can be written."""
_ALIGNMENT = 8
SHOWN = 10
"""Tensors that a message shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _NotFinite:
    """Elements of a tensor: all, those not finite as it was read, and as it would be written."""

    elements: int
    read: int
    written: int


def write_shards(
    directory: Path,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
    shard_bytes: int,
    in_float32: Collection[str] = (),
) -> None:
    """Write every tensor of ``shapes`` in its order, cast to ``dtype``, or to float32 those named
    in ``in_float32``.

    A shard ends before the tensor that would take it past ``shard_bytes``; one that is larger by
    itself has a shard of its own. Raises WeightsError naming the tensors that are not finite, or
    would not be in ``dtype``; no file is left then.
    """
    dtypes = {name: torch.float32 if name in in_float32 else dtype for name in shapes}
    sizes = {name: math.prod(shape) * dtypes[name].itemsize for name, shape in shapes.items()}
    shards = _divide(sizes, shard_bytes=shard_bytes)
    weight_map: dict[str, str] = {}
    faults: dict[str, _NotFinite] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        own = {name: shapes[name] for name in names}
        _write_file(directory / file, shapes=own, read=read, dtypes=dtypes, faults=faults)
    if faults:
        for file in set(weight_map.values()):
            (directory / file).unlink()
        raise WeightsError(_refusal(directory, faults=faults, dtype=dtype))
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        text = json.dumps(index, indent=2) + "\n"
        (directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _divide(sizes: Mapping[str, int], *, shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = []
    filled = 0
    for name, size in sizes.items():
        if not shards or filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write_file(
    path: Path,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], Tensor],
    dtypes: Mapping[str, torch.dtype],
    faults: dict[str, _NotFinite],
) -> None:
    """The safetensors format: the header's length, the header as JSON, the tensors' bytes, the
    larger types first, which keeps each tensor at a multiple of its type's size. faults: by name,
    added to; the bytes of no tensor are written after the first."""
    shapes = dict(sorted(shapes.items(), key=lambda item: -dtypes[item[0]].itemsize))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        dtype = dtypes[name]
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        entry = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        header[name] = entry
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for name, shape in shapes.items():
            found = read(name).detach().cpu()
            tensor = found.to(dtypes[name]).contiguous()
            assert tuple(tensor.shape) == shape, f"{name} is {tuple(tensor.shape)}, not {shape}"
            if not all_finite(tensor):
                faults[name] = _NotFinite(
                    elements=tensor.numel(),
                    read=count_not_finite(found),
                    written=count_not_finite(tensor),
                )
            if not faults:
                stream.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            del found, tensor


def _refusal(directory: Path, *, faults: Mapping[str, _NotFinite], dtype: torch.dtype) -> str:
    lines = [f"{name}: {fault.written} of {fault.elements}" for name, fault in faults.items()]
    more = f"\n  and {len(lines) - SHOWN} more tensors" if len(lines) > SHOWN else ""
    broken = any(fault.read for fault in faults.values())
    too_large = any(fault.read < fault.written for fault in faults.values())
    remedies = []
    if broken:
        remedies.append(
            "They are so where they were read: of what trained, export an earlier checkpoint "
            "(RUN/checkpoints/step-N); of what did not, fetch the published weights again"
        )
    if too_large:
        remedies.append(
            f"{'Some' if broken else 'They'} are finite where they were read and too large for "
            f"{str(dtype).removeprefix('torch.')}: give --dtype float32"
            + (" or bfloat16" if dtype == torch.float16 else "")
        )
    values = sum(fault.written for fault in faults.values())
    return (
        f"cannot export to {directory}: {values} values in {len(faults)} tensors are not finite:"
        + "".join(f"\n  {line}" for line in lines[:SHOWN])
        + more
        + "".join(f"\n{remedy}" for remedy in remedies)
        + "\nNo weights were left there"
    )
