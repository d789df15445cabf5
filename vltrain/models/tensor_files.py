"""Tensors out of one file, one at a time: safetensors, and torch's pickled ``.bin`` and ``.pth``.

In: a path. Out: names with shapes, and each tensor when it is asked for. A safetensors file and a
``.bin`` of torch 1.6 or later are mapped: only what is asked for is read. An older ``.bin`` is read
whole, and stays in memory while the file is open. A pickle gives tensors and plain containers only:
one that names anything else, and so could run code, is refused unread.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vltrain.errors import WeightsError

_ZIP = b"PK\x03\x04"
"""How a file of torch 1.6 or later begins."""
_FOREIGN = re.compile(r"unsupported global:?\s+(?:GLOBAL\s+)?(\S+)", re.IGNORECASE)


class TensorFile(Protocol):
    """An open file. shapes: of every tensor, by its stored name."""

    shapes: dict[str, tuple[int, ...]]

    def tensor(self, name: str) -> Tensor: ...


def open_tensors(path: Path) -> TensorFile:
    """Open a file by its ending. Raises WeightsError where it is damaged, or would run code."""
    return _Mapped(path) if path.suffix == ".safetensors" else _Pickled(path)


class _Mapped:
    def __init__(self, path: Path) -> None:
        try:
            self._stored = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error
        names = self._stored.keys()
        self.shapes = {name: tuple(self._stored.get_slice(name).get_shape()) for name in names}

    def tensor(self, name: str) -> Tensor:
        return self._stored.get_tensor(name)


class _Pickled:
    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as stream:
                mapped = stream.read(len(_ZIP)) == _ZIP
            stored = torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
        except pickle.UnpicklingError as error:
            foreign = _FOREIGN.search(str(error))
            if foreign is None:
                raise _damaged(path, "it is no pickle of tensors") from error
            raise WeightsError(
                f"{path} is refused: it is a pickle that names {foreign.group(1)}, which could run "
                "code, where only tensors are expected. Get the same weights as safetensors"
            ) from error
        except (RuntimeError, OSError, EOFError) as error:
            raise _damaged(path, error) from error
        if not isinstance(stored, dict) or not all(isinstance(t, Tensor) for t in stored.values()):
            raise WeightsError(
                f"{path} is no file of weights: expected tensors by name, found {_contents(stored)}"
            )
        self._stored: dict[str, Tensor] = stored
        self.shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}

    def tensor(self, name: str) -> Tensor:
        return self._stored[name]


def _contents(stored: object) -> str:
    if not isinstance(stored, dict):
        return f"a {type(stored).__name__}"
    others = [f"{n!r}: {type(v).__name__}" for n, v in stored.items() if not isinstance(v, Tensor)]
    return f"{', '.join(others[:5])} among them"


def _damaged(path: Path, error: object) -> WeightsError:
    said = str(error) or "it ends too early"
    return WeightsError(f"{path} is damaged: {said}. Fetch it again")
