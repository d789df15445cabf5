"""Tensors out of a checkpoint: any run of any parameter, whatever wrote it.

In: a checkpoint directory and its manifest. Out: 1-D runs for ``Engine.import_state``, or a part's
whole tensors for the next stage and for export. Cost: only the asked elements are read (safetensors
slices); files stay open while the reader lives.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from vltrain.checkpoint.manifest import FragmentRecord, Manifest
from vltrain.engine.fragments import FragmentKind
from vltrain.errors import CheckpointError


class FragmentReader:
    """Callable as the engine's ``Read``."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self._directory = directory
        self._manifest = manifest
        self._open: dict[str, Any] = {}
        self._rows: dict[tuple[str, str], list[FragmentRecord]] = {}
        for row in sorted(manifest.fragments, key=lambda r: r.offset):
            self._rows.setdefault((row.param, row.kind), []).append(row)

    def __call__(self, name: str, kind: FragmentKind, offset: int, count: int, /) -> torch.Tensor:
        """Elements [offset, offset + count) of ``name``, 1-D. Raises CheckpointError where the
        checkpoint does not hold them all."""
        rows = self._rows.get((name, kind.value), [])
        pieces: list[torch.Tensor] = []
        at, end = offset, offset + count
        for row in rows:
            low, high = max(at, row.offset), min(end, row.offset + row.count)
            if low == at and low < high:
                pieces.append(self._slice(row, low - row.offset, high - row.offset))
                at = high
        if at != end:
            raise CheckpointError(
                f"{self._directory} lacks elements {at} to {end} of {name} ({kind.value}); it has "
                f"{[(r.offset, r.offset + r.count) for r in rows]}. The checkpoint is of another "
                "model or was trained with other parts frozen."
            )
        return torch.cat(pieces) if len(pieces) != 1 else pieces[0]

    def holds(self, name: str, kind: FragmentKind) -> bool:
        """Whether there is anything of this kind: a parameter that stayed frozen inside a part that
        trained has a value and no master."""
        return (name, kind.value) in self._rows

    def _slice(self, row: FragmentRecord, low: int, high: int) -> torch.Tensor:
        try:
            if row.file not in self._open:
                opened = safe_open(str(self._directory / row.file), framework="pt")
                self._open[row.file] = opened
            return self._open[row.file].get_slice(row.key)[low:high]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{self._directory / row.file} cannot be read: {error}."
            ) from error

    def whole(self, name: str) -> torch.Tensor:
        """A parameter's weights in its own shape: the fp32 master, or the stored value of one that
        stayed frozen inside a part that trained."""
        record = self._manifest.params[name]
        trained = self.holds(name, FragmentKind.master)
        kind = FragmentKind.master if trained else FragmentKind.frozen
        return self(name, kind, 0, math.prod(record.shape)).view(record.shape)


def read_part_state(
    directory: Path, manifest: Manifest, *, part: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """A trained part's whole tensors by name, one at a time (fp32). Raises CheckpointError for a
    part that did not train: its weights are at the path that the manifest names."""
    record = manifest.parts.get(part)
    if record is None or not record.trained:
        where = record.path if record is not None else None
        raise CheckpointError(
            f"{directory} does not hold the weights of {part!r}: it did not train there. "
            + (f"They are at {where}." if where else "It has no record of them.")
            + f" Parts inside: {', '.join(p for p, r in manifest.parts.items() if r.trained)}."
        )
    reader = FragmentReader(directory, manifest)
    for name, parameter in manifest.params.items():
        if parameter.part == part:
            yield name, reader.whole(name)


def check_fits(
    directory: Path, manifest: Manifest, *, trainable: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise CheckpointError unless the checkpoint trained exactly these parameters (name ->
    shape)."""
    masters = {r.param for r in manifest.fragments if r.kind == FragmentKind.master.value}
    lacking = sorted(set(trainable) - masters)
    extra = sorted(masters - set(trainable))
    if lacking or extra:
        raise CheckpointError(
            f"{directory} does not fit what trains now. Not in the checkpoint: {_some(lacking)}. "
            f"Only in the checkpoint: {_some(extra)}. Resume with the same model, stage.trainable "
            "and stage.freeze."
        )
    for name, shape in trainable.items():
        found = manifest.params[name].shape
        if found != tuple(shape):
            raise CheckpointError(
                f"{directory}: {name} has shape {found}, the model wants {tuple(shape)}."
            )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5]) or "none"
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
