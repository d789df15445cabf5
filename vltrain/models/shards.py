"""Weights to safetensors, tensor by tensor: a shard is never in memory.

In: names with shapes, and a reader of each tensor. Out: ``model.safetensors``, or numbered shards
and their index, as ``save_pretrained`` names them. Memory: one tensor and its copy in the written
type. Rejected: ``save_file``, which takes a whole shard at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""What safetensors calls the types that can be written."""
_ALIGNMENT = 8


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
    itself has a shard of its own.
    """
    dtypes = {name: torch.float32 if name in in_float32 else dtype for name in shapes}
    sizes = {name: math.prod(shape) * dtypes[name].itemsize for name, shape in shapes.items()}
    shards = _divide(sizes, shard_bytes=shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        own = {name: shapes[name] for name in names}
        _write_file(directory / file, shapes=own, read=read, dtypes=dtypes)
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
) -> None:
    """The safetensors format: the header's length, the header as JSON, the tensors' bytes, the
    larger types first, which keeps each tensor at a multiple of its type's size."""
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
            tensor = read(name).detach().to(device="cpu", dtype=dtypes[name]).contiguous()
            assert tuple(tensor.shape) == shape, f"{name} is {tuple(tensor.shape)}, not {shape}"
            stream.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            del tensor
