"""Published weights into our parts, every tensor accounted for; and what identifies a weight.

In: published directories by part (see ``layouts``). Out: the parameters of those parts, cast to the
part's type, one whole tensor in memory at a time. Digests are xxh3-128 over type,
shape and bytes: they prove that frozen parts did not change and tie a run to the base weights
that it started from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from vltrain.errors import WeightsError
from vltrain.models.adaptor import HybridAdaptor
from vltrain.models.build import BuiltModel
from vltrain.models.config import ModelConfig
from vltrain.models.layouts import PublishedDirectory
from vltrain.models.trainable import part_of


def load_weights(built: BuiltModel, *, directories: Mapping[str, str | Path]) -> None:
    """Copy published weights into the parts that ``directories`` names (part -> directory).

    An adaptor without a directory of its own starts its second neck from the SAM that is loaded,
    and SAM's own neck too where it trains that. Raises WeightsError naming every tensor that is
    missing, unexpected or of another shape.
    """
    fresh_adaptor = "sam" in directories and "adaptor" not in directories
    for part, directory in directories.items():
        expected = {name: (name,) for name in built.part_state(part)}
        if part == "sam" and fresh_adaptor and isinstance(built.module.adaptor, HybridAdaptor):
            expected |= _necks(built.part_state("adaptor"), sam=expected)
        _load(built, part=part, directory=Path(directory), expected=expected)


def published_digests(config: ModelConfig, *, part: str, directory: str | Path) -> dict[str, str]:
    """``tensor_digests`` of a part as it is stored in a published directory, whatever type a run
    casts it to: what a manifest records of a base weight."""
    published = PublishedDirectory(Path(directory), config=config)
    return tensor_digests(published.tensors(lambda name: part_of(name) == part))


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


def _necks(adaptor: Iterable[str], *, sam: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """As ``expected`` of ``_load``: SAM's own neck fills its own place, in SAM or in the adaptor,
    and the adaptor's second neck."""
    own = [n for n in (*sam, *adaptor) if n.startswith(("sam.neck.", "adaptor.sam_neck."))]
    return {name: (name, f"adaptor.neck.{name.partition('neck.')[2]}") for name in own}


def _load(
    built: BuiltModel, *, part: str, directory: Path, expected: Mapping[str, tuple[str, ...]]
) -> None:
    """Fill from the tensors of a directory. ``expected``: our full name of a tensor -> the
    parameters that it fills; the directory must cover it exactly."""
    found: set[str] = set()
    wrong: list[str] = []
    published = PublishedDirectory(directory, config=built.config)
    shapes = {name: tuple(p.shape) for name, p in built.named_parameters() if name in expected}
    for name, tensor in published.tensors(lambda n: part_of(n) == part or n in expected):
        found.add(name)
        if name not in expected:
            wrong.append(f"unexpected {name} {tuple(tensor.shape)}")
        elif shapes[name] != tensor.shape:
            wrong.append(f"mis-shaped {name}: found {tuple(tensor.shape)}, expected {shapes[name]}")
        else:
            for target in expected[name]:
                built.fill(target, tensor)
    missing = sorted(expected.keys() - found)
    wrong += [f"missing {name} {shapes[name]}" for name in missing]
    if wrong:
        more = f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise WeightsError(
            f"{directory} does not fit part {part!r} of model {built.config.name!r}:\n  "
            + "\n  ".join(wrong[:20])
            + more
            + f"\nGive model.weights.{part} a directory of this shape, or choose another model"
        )
