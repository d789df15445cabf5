"""One rank's fragments into files, each synced and digested.

In: fragments, one at a time. Out: safetensors files of bounded size in one folder, weights and
moments apart so that the next stage need not read moments, and the rows that say where each run
lies; and whether all of it is finite. Cost: memory for one file's tensors, one pass over each; each
file is read back once for its digest.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from vltrain import distributed
from vltrain.checkpoint.manifest import FileRecord, FragmentRecord, digest_file
from vltrain.engine.fragments import MOMENTS, Fragment
from vltrain.models.finite import all_finite

_FILE_BYTES = 1 << 30


class FragmentWriter:
    """One rank's fragments into safetensors files of bounded size, weights and moments apart, so
    that the next stage need not read moments."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._pending: dict[str, dict[str, torch.Tensor]] = {"weights": {}, "moments": {}}
        self._pending_bytes = {"weights": 0, "moments": 0}
        self._written = {"weights": 0, "moments": 0}
        self.rows: list[FragmentRecord] = []
        self.finite = True  # so far, every value
        self._files: list[FileRecord] = []

    def add(self, fragment: Fragment) -> None:
        self.finite = self.finite and all_finite(fragment.values)
        side = "moments" if fragment.kind in MOMENTS else "weights"
        key = f"{fragment.kind.value}/{fragment.name}@{fragment.offset}"
        self._pending[side][key] = fragment.values.contiguous()
        self._pending_bytes[side] += fragment.values.nbytes
        self.rows.append(
            FragmentRecord(
                file=self._name(side),
                key=key,
                param=fragment.name,
                kind=fragment.kind.value,
                offset=fragment.offset,
                count=fragment.values.numel(),
            )
        )
        if self._pending_bytes[side] >= _FILE_BYTES:
            self._flush(side)

    def finish(self) -> list[FileRecord]:
        for side in self._pending:
            if self._pending[side]:
                self._flush(side)
        return self._files

    def add_file(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        """A file of its own, without rows."""
        save_file(tensors, str(self._directory / name))
        self._files.append(_record(self._directory / name))

    def _name(self, side: str) -> str:
        return f"{side}-{distributed.rank():05d}-{self._written[side]:03d}.safetensors"

    def _flush(self, side: str) -> None:
        path = self._directory / self._name(side)
        save_file(self._pending[side], str(path))
        self._pending[side], self._pending_bytes[side] = {}, 0
        self._written[side] += 1
        self._files.append(_record(path))


def write_text(path: Path, text: str) -> FileRecord:
    path.write_text(text)
    return _record(path)


def _record(path: Path) -> FileRecord:
    """Sync a written file and take its size and digest."""
    sync(path)
    return FileRecord(path=path.name, bytes=path.stat().st_size, xxh3_128=digest_file(path))


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
