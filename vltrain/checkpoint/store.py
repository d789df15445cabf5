"""The checkpoints of one run: written aside, made real by a rename, thinned out, found again.

In: a manifest and each rank's fragments. Out: ``<run>/checkpoints/step-N/``. A save that dies at
any moment leaves either the new checkpoint complete or nothing that is taken for one: files are
written into a hidden folder and synced, the manifest goes in last, and one rename makes the
checkpoint. Needs a file system that all processes see. Cost: each rank writes its own share once,
reads it back once for the digest, and two small exchanges.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from vltrain import distributed
from vltrain.checkpoint.config import CheckpointConfig
from vltrain.checkpoint.health import NOT_FINITE, why_not_good
from vltrain.checkpoint.manifest import (
    FRAGMENTS,
    MANIFEST,
    FileRecord,
    FragmentRecord,
    Manifest,
    damaged_files,
    fragments_to_json,
    read_manifest,
    to_json,
    versions,
)
from vltrain.checkpoint.reader import FragmentReader
from vltrain.checkpoint.writer import FragmentWriter, sync, write_text
from vltrain.engine.fragments import Fragment
from vltrain.errors import CheckpointError

log = logging.getLogger(__name__)

_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint."""

    directory: Path
    manifest: Manifest

    def reader(self) -> FragmentReader:
        return FragmentReader(self.directory, self.manifest)

    def rng(self, rank: int, *, world: int) -> dict[str, torch.Tensor] | None:
        """Random states of a rank; None where another number of ranks wrote, or none were kept."""
        name = _rng_name(rank)
        if self.manifest.world.get("size") != world or name not in {
            record.path for record in self.manifest.files
        }:
            return None
        return load_file(self.directory / name)


@dataclass(frozen=True, kw_only=True)
class _Share:
    """What one rank wrote of a checkpoint. problem: why it could not."""

    rows: list[FragmentRecord]
    files: list[FileRecord]
    finite: bool
    problem: str | None


def _rng_name(rank: int) -> str:
    return f"rng-{rank:05d}.safetensors"


def open_checkpoint(directory: Path) -> Checkpoint:
    """One checkpoint directory, sizes checked. Raises CheckpointError."""
    return Checkpoint(directory=directory, manifest=read_manifest(directory))


def run_of(directory: Path) -> Path:
    """The run directory that a checkpoint directory lies in; one that was copied away from its run
    stands for itself, since it has the run's config too."""
    folder = directory.resolve().parent
    lies_in_it = folder.name == "checkpoints" and (folder.parent / "config.yaml").is_file()
    return folder.parent if lies_in_it else directory


def not_finite(manifest: Manifest) -> str | None:
    """Why nothing can go on from a checkpoint with these values, None where it can."""
    health = manifest.health
    return NOT_FINITE if health is not None and not health.finite else None


def verify(checkpoint: Checkpoint) -> list[str]:
    """Damaged files, the same list on every rank; the ranks share the reading (collective)."""
    mine = damaged_files(
        checkpoint.directory,
        checkpoint.manifest,
        share=distributed.rank(),
        shares=distributed.world_size(),
    )
    return sorted(name for names in distributed.gather_objects(mine) for name in names)


class CheckpointStore:
    """The checkpoints under one directory. Every method is called by every rank."""

    def __init__(self, directory: Path, *, config: CheckpointConfig) -> None:
        self.directory = directory
        self._config = config

    def steps(self) -> list[int]:
        """Steps that have a directory of their own (complete or damaged), rising."""
        if not self.directory.is_dir():
            return []
        found = [_STEP.fullmatch(p.name) for p in self.directory.iterdir() if p.is_dir()]
        return sorted(int(m.group(1)) for m in found if m)

    def path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint whose every file has its digest, None where there is no directory
        at all (collective). One that is damaged, or whose values are not finite, is named in a
        warning and the one before is taken.

        Raises CheckpointError where there are checkpoints and every one is so: to start from
        nothing in their place is not ours to decide.
        """
        steps = distributed.broadcast_object(self.steps())
        found = self._first_of(reversed(steps), unfit=not_finite)
        if found is None and steps:
            raise CheckpointError(
                f"All {len(steps)} checkpoints in {self.directory} are damaged or not finite "
                f"(steps {steps}). Restore one from a copy, or move the directory away to start "
                "anew."
            )
        return found

    def last_good(self, *, updates: int, left: Sequence[tuple[int, int]]) -> Checkpoint | None:
        """The newest that a run of so many ``updates`` may go back to (collective; see ``health``
        for what is good and what ``left`` is); the others are named in warnings. None where there
        is no such one."""

        def unfit(manifest: Manifest) -> str | None:
            return why_not_good(manifest.health, step=manifest.step, updates=updates, left=left)

        steps = distributed.broadcast_object(self.steps())
        return self._first_of(reversed(steps), unfit=unfit)

    def _first_of(
        self, steps: Iterable[int], *, unfit: Callable[[Manifest], str | None]
    ) -> Checkpoint | None:
        for step in steps:
            problem = self._problem(step, unfit=unfit)
            if problem is None:
                return open_checkpoint(self.path(step))
            if distributed.is_first():
                log.warning("Checkpoint of step %d is passed over: %s", step, problem)
        return None

    def _problem(self, step: int, *, unfit: Callable[[Manifest], str | None]) -> str | None:
        """Why a checkpoint cannot be used, agreed on by all ranks."""
        try:
            checkpoint, mine = open_checkpoint(self.path(step)), None
        except CheckpointError as error:
            checkpoint, mine = None, str(error)
        problems = [p for p in distributed.gather_objects(mine) if p is not None]
        if problems or checkpoint is None:
            return problems[0]
        if (reason := unfit(checkpoint.manifest)) is not None:
            return f"{reason}."
        damaged = verify(checkpoint)
        return f"bytes of {', '.join(damaged)} are not as written." if damaged else None

    def save(
        self,
        manifest: Manifest,
        fragments: Iterable[Fragment],
        *,
        tensor_digests: Mapping[str, Mapping[str, str]] | None = None,
        texts: Mapping[str, str] | None = None,
        rng: Mapping[str, torch.Tensor] | None = None,
    ) -> Path:
        """Write a checkpoint (collective) and thin out the older ones; returns its directory.

        fragments: this rank's, consumed one by one. tensor_digests: per part, the digest of each
        tensor of its base weights. texts: further small files by name. rng: this rank's random
        states. Raises CheckpointError on every rank where any could not write.
        """
        step = manifest.step
        aside = self.directory / f".saving-{self.path(step).name}"
        if distributed.is_first():
            self._make_aside(aside)
        distributed.barrier()
        gathered = distributed.gather_objects(self._write_own(aside, fragments, rng=rng or {}))
        problems = [share.problem for share in gathered if share.problem is not None]
        if not problems and distributed.is_first():
            problems = self._complete(
                aside,
                manifest,
                gathered,
                tensor_digests=tensor_digests or {},
                texts=texts or {},
            )
        problems = distributed.broadcast_object(problems)
        if problems:
            if distributed.is_first():
                shutil.rmtree(aside, ignore_errors=True)
            raise CheckpointError(
                f"The checkpoint of step {step} could not be written to {self.directory}: "
                f"{'; '.join(problems)}. Older checkpoints are as they were."
            )
        if distributed.is_first():
            if not all(share.finite for share in gathered):
                log.warning("Checkpoint of step %d: %s; no run will use it", step, NOT_FINITE)
            self._thin_out(newest=manifest)
        return self.path(step)

    def _make_aside(self, aside: Path) -> None:
        """An empty hidden folder; what earlier, interrupted saves and removals left goes. A folder
        that cannot be made is reported by every rank that then does not see it."""
        for pattern in (".saving-*", ".removing-*"):
            for left in self.directory.glob(pattern):
                shutil.rmtree(left, ignore_errors=True)
        try:
            aside.mkdir(parents=True)
        except OSError as error:
            log.warning("%s cannot be made: %s", aside, error)

    def _write_own(
        self, aside: Path, fragments: Iterable[Fragment], *, rng: Mapping[str, torch.Tensor]
    ) -> _Share:
        if not aside.is_dir():
            problem = (
                f"rank {distributed.rank()} on {socket.gethostname()} does not see {aside}: the "
                "run directory must be writable and on a file system that every node shares"
            )
            return _Share(rows=[], files=[], finite=True, problem=problem)
        try:
            writer = FragmentWriter(aside)
            for fragment in fragments:
                writer.add(fragment)
            if rng:
                writer.add_file(_rng_name(distributed.rank()), dict(rng))
            files = writer.finish()
        except (OSError, SafetensorError) as error:
            problem = f"rank {distributed.rank()}: {error}"
            return _Share(rows=[], files=[], finite=True, problem=problem)
        return _Share(rows=writer.rows, files=files, finite=writer.finite, problem=None)

    def _complete(
        self,
        aside: Path,
        manifest: Manifest,
        gathered: list[_Share],
        *,
        tensor_digests: Mapping[str, Mapping[str, str]],
        texts: Mapping[str, str],
    ) -> list[str]:
        """Rank 0's part: side files, manifest, rename. Returns what went wrong."""
        try:
            parts = dict(manifest.parts)
            files = [file for share in gathered for file in share.files]
            files += [write_text(aside / name, text) for name, text in texts.items()]
            for part, digests in tensor_digests.items():
                name = f"digests-{part}.json"
                files.append(write_text(aside / name, json.dumps(digests)))
                parts[part] = dataclasses.replace(parts[part], tensors=name)
            health = manifest.health
            if health is not None:
                finite = all(share.finite for share in gathered)
                health = dataclasses.replace(health, finite=finite)
            manifest = dataclasses.replace(
                manifest,
                health=health,
                fragments=tuple(row for share in gathered for row in share.rows),
                parts=parts,
                versions=manifest.versions or versions(),
            )
            files.append(write_text(aside / FRAGMENTS, fragments_to_json(manifest)))
            manifest = dataclasses.replace(manifest, files=tuple(files))
            write_text(aside / MANIFEST, to_json(manifest))
            sync(aside)
            self._rename(aside, self.path(manifest.step))
        except OSError as error:
            return [f"rank 0: {error}"]
        return []

    def _rename(self, aside: Path, final: Path) -> None:
        """Make the checkpoint real; one of the same step (damaged, or written again) makes way."""
        doomed = final.with_name(f".removing-{final.name}")
        if final.exists():
            final.rename(doomed)
        aside.rename(final)
        sync(self.directory)
        shutil.rmtree(doomed, ignore_errors=True)

    def _best(self, steps: list[int]) -> set[int]:
        if not self._config.keep_best:
            return set()
        losses: list[tuple[float, int]] = []
        for step in steps:
            try:
                loss = read_manifest(self.path(step)).metrics.get("loss")
            except CheckpointError:
                continue
            if loss is not None:
                losses.append((loss, step))
        return {step for _, step in sorted(losses)[: self._config.keep_best]}

    def _last_good(self, steps: Sequence[int], *, newest: Manifest) -> set[int]:
        """The last of ``steps`` that a run may go back to from ``newest``."""
        if newest.health is None:
            return set()
        updates, left = newest.health.updates, newest.health.left
        for step in reversed(steps):
            try:
                health = read_manifest(self.path(step)).health
            except CheckpointError:
                continue
            if why_not_good(health, step=step, updates=updates, left=left) is None:
                return {step}
        return set()

    def _thin_out(self, *, newest: Manifest) -> None:
        """Keep the last ``keep_last`` up to ``newest``, the multiples of ``keep_every_steps``, the
        ``keep_best`` of lowest loss, and one that the run may go back to."""
        older = [step for step in self.steps() if step <= newest.step]
        every = self._config.keep_every_steps
        keep = set(older[-max(1, self._config.keep_last) :])
        keep |= {step for step in older if every and step % every == 0}
        keep |= self._best(older) | self._last_good(older, newest=newest)
        for step in older:
            if step not in keep:
                # Rename first: a removal cut short leaves nothing that looks like a checkpoint.
                doomed = self.directory / f".removing-{self.path(step).name}"
                try:
                    self.path(step).rename(doomed)
                except OSError as error:
                    log.warning("The old checkpoint of step %d stays: %s", step, error)
                shutil.rmtree(doomed, ignore_errors=True)
