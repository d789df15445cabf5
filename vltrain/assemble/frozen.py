"""The proof that what is frozen did not change: a digest of every frozen tensor, before and after.

In: the engine and the towers outside it. Out: the run's summary. Cost: one pass over the frozen
weights at the start and one at the end (xxh3, several GB/s); nothing in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from vltrain.engine.engine import Engine
from vltrain.errors import WeightsError
from vltrain.metrics.summary import PartSummary, StageSummary
from vltrain.models.build import BuiltModel
from vltrain.models.trainable import PartCount, part_of
from vltrain.models.weights import part_digest, tensor_digest


@dataclass(frozen=True, kw_only=True)
class FrozenDigests:
    """Digest (xxh3-128 hex) of every frozen tensor in the type that it is held in, by full name."""

    tensors: dict[str, str]

    def of_part(self, part: str) -> str | None:
        """One digest of a part's frozen tensors; None where all of it trains."""
        mine = {name: d for name, d in self.tensors.items() if part_of(name) == part}
        return part_digest(mine) if mine else None

    def changed_since(self, before: FrozenDigests) -> list[str]:
        """Names whose digest is not what it was."""
        names = before.tensors.keys() | self.tensors.keys()
        return sorted(n for n in names if before.tensors.get(n) != self.tensors.get(n))


def frozen_digests(engine: Engine, built: BuiltModel) -> FrozenDigests:
    """Digest what is frozen now (collective under ZeRO-3)."""
    return FrozenDigests(
        tensors={name: tensor_digest(tensor) for name, tensor in _frozen_tensors(engine, built)}
    )


def _frozen_tensors(engine: Engine, built: BuiltModel) -> Iterator[tuple[str, torch.Tensor]]:
    yield from engine.frozen_tensors()
    yield from ((name, p.detach()) for name, p in built.frozen.named_parameters())


def refuse_changed(before: FrozenDigests, after: FrozenDigests) -> None:
    """Raise WeightsError naming every frozen tensor that moved: it is a fault of ours, and the
    run's weights are not what its config says."""
    if changed := after.changed_since(before):
        raise WeightsError(
            f"{len(changed)} frozen tensors changed while training: {', '.join(changed[:10])}. "
            "Do not use this run's weights; report this with the run's config.yaml"
        )


def summarise(
    *,
    number: int,
    name: str,
    steps: int,
    init_from: str,
    counts: Sequence[PartCount],
    trainable: Sequence[str],
    before: FrozenDigests,
    after: FrozenDigests | None,
) -> StageSummary:
    """What trained and what did not, for summary.json and the report."""
    parts = tuple(
        PartSummary(
            part=count.part,
            parameters=count.parameters,
            trainable=count.trainable,
            trained_tensors=tuple(n for n in trainable if part_of(n) == count.part),
            frozen_tensors=sum(part_of(n) == count.part for n in before.tensors),
            frozen_digest_before=before.of_part(count.part),
            frozen_digest_after=after.of_part(count.part) if after is not None else None,
        )
        for count in counts
    )
    return StageSummary(number=number, name=name, steps=steps, init_from=init_from, parts=parts)
