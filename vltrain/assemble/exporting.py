"""A run's weights, one tensor at a time, from wherever each part lies: what an export reads.

In: a found run. Out: a ``WeightSource`` over its checkpoint and the published directories of the
parts that did not train. Memory: nothing but the tensor that is asked for; only a part that is
frozen and was never stored (random by the seed) has the model built once.

Tensors that a published file stores and no model reads are not copied into checkpoints: they are
read where the part began, which the manifests name, back through the stages. The routers'
corrections are in the checkpoint's manifest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vltrain.assemble.inference import FoundRun
from vltrain.checkpoint.handoff import OriginKind
from vltrain.checkpoint.manifest import MANIFEST, read_manifest
from vltrain.errors import CheckpointError, WeightsError
from vltrain.models.build import build_model
from vltrain.models.layouts import UNUSED, is_unused
from vltrain.models.published_directory import PublishedDirectory
from vltrain.models.router_balance import RouterBalance
from vltrain.models.trainable import PARTS, part_of
from vltrain.models.weights import part_digest, published_digests, tensor_digests

log = logging.getLogger(__name__)


class RunWeights:
    """shapes: of every parameter and correction, and of the unused tensors that could be found.
    Trained parts are fp32 masters, the others as they are stored.

    Raises ContractError where a frozen part's weights are not those that the run was trained
    beside (their digests are taken: one reading of their files), CheckpointError where the
    manifest's corrections are of another model.
    """

    def __init__(self, run: FoundRun) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._read: dict[str, Callable[[str], Tensor]] = {}
        for part in PARTS:
            origin = run.origins.parts.get(part)
            if origin is None:
                continue
            if origin.kind is OriginKind.checkpoint:
                self._add_trained(run, part)
            elif origin.kind is OriginKind.published and origin.path is not None:
                self._add_published(run, part, origin.path)
            else:
                self._add_fresh(run, part)
            self._add_unused(run, part)
        self._add_corrections(run)

    def tensor(self, name: str) -> Tensor:
        """One tensor (among ``shapes``)."""
        return self._read[name](name)

    def _add(self, shapes: dict[str, tuple[int, ...]], *, read: Callable[[str], Tensor]) -> None:
        self.shapes |= shapes
        self._read |= dict.fromkeys(shapes, read)

    def _add_trained(self, run: FoundRun, part: str) -> None:
        params = run.checkpoint.manifest.params
        shapes = {name: record.shape for name, record in params.items() if record.part == part}
        self._add(shapes, read=run.checkpoint.reader().whole)

    def _add_published(self, run: FoundRun, part: str, directory: Path) -> None:
        digests = published_digests(run.config.model, part=part, directory=directory)
        run.origins.check_digest(part, found=part_digest(digests))
        published = PublishedDirectory(directory, config=run.config.model)
        shapes = {
            name: shape
            for name, shape in published.shapes.items()
            if part_of(name) == part and not is_unused(name)
        }
        self._add(shapes, read=published.tensor)

    def _add_fresh(self, run: FoundRun, part: str) -> None:
        built = build_model(
            run.config.model,
            trainable=(),
            freeze=(),
            dtype=torch.float32,
            frozen_dtype=torch.float32,
            device="cpu",
            seed=run.config.run.seed,
        )
        state = built.part_state(part)
        run.origins.check_digest(part, found=part_digest(tensor_digests(state.items())))
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        self._add(shapes, read=state.__getitem__)

    def _add_corrections(self, run: FoundRun) -> None:
        """As the run left them, also where the language model itself is as published."""
        language = run.config.model.language
        if language.moe is None:
            return
        balance = RouterBalance.of(language)
        balance.restore(run.checkpoint.manifest.counters.get("routers"))
        state = dict(balance.named())
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        self._add(shapes, read=state.__getitem__)

    def _add_unused(self, run: FoundRun, part: str) -> None:
        directory = _began_in(run, part)
        if directory is None or not any(prefix.startswith(f"{part}.") for prefix in UNUSED):
            return
        try:
            published = PublishedDirectory(directory, config=run.config.model)
        except WeightsError as error:
            log.warning("unused tensors of %s cannot be read where it began: %s", part, error)
            return
        shapes = {
            name: shape
            for name, shape in published.shapes.items()
            if part_of(name) == part and is_unused(name)
        }
        self._add(shapes, read=published.tensor)


def _began_in(run: FoundRun, part: str) -> Path | None:
    """The published directory that a part began with, stages ago; None where it was fresh, or a
    checkpoint on the way is gone."""
    origin = run.origins.parts[part]
    if origin.kind is OriginKind.published:
        return origin.path
    path = run.checkpoint.manifest.parts[part].path
    while path is not None and (Path(path) / MANIFEST).is_file():
        try:
            path = read_manifest(Path(path)).parts[part].path
        except CheckpointError as error:
            log.warning("unused tensors of %s cannot be followed back: %s", part, error)
            return None
    return Path(path) if path is not None else None
