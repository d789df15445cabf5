"""Where step rows go: the narrow interface, and the pair of sums that lossy sinks share.

In: a ``StepRow`` per step, on the first rank only. Out: whatever the sink does with it. A sink
never changes training and never raises for a reason of its own once it is open. ``Interval``
gathers the rows between two outputs, so that a sink that shows every n-th step shows the mean of
n steps instead of a sample (with grouped steps, a sample would show one modality only).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vltrain.metrics.peaks import mean_mfu
from vltrain.metrics.rows import StepRow, useful_share


class Sink(Protocol):
    """Takes step rows."""

    def write(self, row: StepRow) -> None: ...

    def close(self) -> None: ...


class Sinks:
    """Several sinks as one; ``close`` closes all of them."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)

    def write(self, row: StepRow) -> None:
        for sink in self._sinks:
            sink.write(row)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class IntervalSummary:
    """Sums, means and rates of the rows of one interval; ``last`` is for what has no mean (step,
    learning rates, shares so far)."""

    last: StepRow
    tokens: dict[str, int]  # by modality, of all steps
    supervised: dict[str, int]
    holes: int
    skipped: int  # steps without an update
    grad_norm: float | None  # mean of the steps that have one
    loss: float | None  # nats per target, weighted by targets; None: no finite loss
    loss_by_modality: dict[str, float]  # of steps that are all one modality
    tokens_per_second: float
    images_per_second: float
    data_wait_share: float  # of the wall time, 0 to 1
    flops_per_second: float | None
    mfu: float | None  # 0 to 1
    useful_share: float | None  # of the places that were computed, those that held a token
    rank_imbalance: float | None  # mean of the steps that have one


class Interval:
    """Rows since the last ``take``."""

    def __init__(self) -> None:
        self._rows: list[StepRow] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: StepRow) -> None:
        self._rows.append(row)

    def take(self) -> IntervalSummary:
        """The summary; the interval is empty afterwards."""
        assert self._rows, "an interval without rows has no summary"
        rows, self._rows = self._rows, []
        seconds = max(sum(r.seconds for r in rows), 1e-9)
        modalities = sorted({r.modality for r in rows if r.modality is not None})
        by_modality = {m: _mean_loss([r for r in rows if r.modality == m]) for m in modalities}
        flops = [r.model_flops for r in rows]
        counted = [f for f in flops if f is not None]
        imbalances = [r.rank_imbalance for r in rows if r.rank_imbalance is not None]
        norms = [r.grad_norm for r in rows if r.grad_norm is not None]
        return IntervalSummary(
            last=rows[-1],
            tokens=_sum_modalities(r.tokens for r in rows),
            supervised=_sum_modalities(r.supervised for r in rows),
            holes=sum(r.holes for r in rows),
            skipped=sum(r.skipped for r in rows),
            grad_norm=sum(norms) / len(norms) if norms else None,
            loss=_mean_loss(rows),
            loss_by_modality={m: x for m, x in by_modality.items() if x is not None},
            tokens_per_second=sum(r.num_tokens for r in rows) / seconds,
            images_per_second=sum(r.images for r in rows) / seconds,
            data_wait_share=sum(r.data_wait_seconds for r in rows) / seconds,
            flops_per_second=sum(counted) / seconds if len(counted) == len(flops) else None,
            mfu=mean_mfu(rows),
            useful_share=useful_share(rows),
            rank_imbalance=sum(imbalances) / len(imbalances) if imbalances else None,
        )


def _sum_modalities(parts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)


def _mean_loss(rows: Sequence[StepRow]) -> float | None:
    weighted = [(r.loss, r.num_supervised) for r in rows if r.loss is not None]
    targets = sum(n for _, n in weighted)
    if not targets:
        return None
    return sum(loss * n for loss, n in weighted) / targets
