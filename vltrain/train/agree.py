"""What all ranks agree on before the first backward of a step, in one exchange on the control
plane.

In: one rank's micro-batches. Out: the label tokens of the whole global step (the loss is divided by
them, so they must be counted first, holes included), token counts, faults, and the step's digest in
global pack order. Cost: one gather of a few KB over gloo; the accelerator is not touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vltrain import distributed
from vltrain.batch import Fault, MicroBatch, StepPlan
from vltrain.data.digest import chain, step_digest
from vltrain.errors import DataError


@dataclass(frozen=True, kw_only=True)
class AgreedStep:
    """Sums over all ranks. squares: of all images, tiles included. slots: places that
    are computed, padding included. tokens and targets are by
    modality; digest and chain are hex. stop: who was asked to stop and how, None where nobody was.
    failed: a checkpoint could not be written."""

    targets: dict[str, int]
    tokens: dict[str, int]
    images: int
    squares: int
    slots: int
    holes: int
    faults: tuple[Fault, ...]
    digest: str
    chain: str
    stop: str | None
    failed: bool

    @property
    def num_targets(self) -> int:
        return sum(self.targets.values())


def agree(
    plan: StepPlan,
    micros: Sequence[MicroBatch],
    *,
    chain_head: str,
    stop: str | None,
    failed: bool,
) -> AgreedStep:
    """Gather this step's counts and pack digests from every rank (collective). ``stop``: the signal
    that asked this process to stop, if one did; ``failed``: its checkpoint could not be written.

    Raises DataError where the ranks together do not hold exactly the packs of the plan: that would
    be a fault of the assignment, and training on would lose or double samples without a sign.
    """
    mine = {
        "targets": _sum_modalities(m.num_targets for m in micros),
        "tokens": _sum_modalities(m.num_tokens for m in micros),
        "images": sum(m.num_images for m in micros),
        "squares": sum(m.num_squares for m in micros),
        "slots": sum(m.num_slots for m in micros),
        "faults": tuple(f for m in micros for f in m.faults),
        "stop": stop,
        "failed": failed,
        "digests": [
            pair for m in micros for pair in zip(m.pack_numbers, m.pack_digests, strict=True)
        ],
    }
    ranks = distributed.gather_objects(mine)
    held = [pair for part in ranks for pair in part["digests"]]
    digests: dict[int, bytes] = dict(held)
    expected = [pack.number for pack in plan.packs]
    if sorted(number for number, _ in held) != sorted(expected):
        raise DataError(
            f"step {plan.step}: the plan has packs {expected[0]} to {expected[-1]} "
            f"({len(expected)}), the ranks hold {len(held)} ({len(digests)} distinct)"
        )
    digest = step_digest([digests[number] for number in expected])
    # In an order that does not depend on which rank met which, so that the ledger does not either.
    faults = tuple(sorted((f for part in ranks for f in part["faults"]), key=_place))
    return AgreedStep(
        targets=_sum_modalities(p["targets"] for p in ranks),
        tokens=_sum_modalities(p["tokens"] for p in ranks),
        images=sum(p["images"] for p in ranks),
        squares=sum(p["squares"] for p in ranks),
        slots=sum(p["slots"] for p in ranks),
        holes=sum(1 for f in faults if f.action == "hole"),
        faults=faults,
        digest=digest,
        chain=chain(chain_head, plan.step, digest),
        stop=next((f"{p['stop']} on rank {r}" for r, p in enumerate(ranks) if p["stop"]), None),
        failed=any(p["failed"] for p in ranks),
    )


def _place(fault: Fault) -> tuple[str, str, str]:
    return fault.origin.source, fault.origin.shard, fault.origin.key


def _sum_modalities(parts) -> dict[str, int]:
    total = {"language": 0, "multimodal": 0}
    for part in parts:
        for modality, count in part.items():
            total[modality] += count
    return total
