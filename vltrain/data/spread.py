"""How far apart the plan puts samples that are neighbours in a shard.

In: planned steps. Out: a ``Spread``: distances in packs between pieces that lie so many places from
each other in their source. Neighbours of a shard are often alike (one book, one site, one
annotator); a step that holds many of them is a step of fewer samples than it seems. Costs one sort
of the pieces seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vltrain.batch import StepPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """pairs: pairs seen. median_packs, tenth_packs: distance in packs of the global order that half
    (a tenth) of the pairs stay below. same_step: share of pairs that fall into one step."""

    pairs: int
    median_packs: float
    tenth_packs: float
    same_step: float


def spread_of_neighbours(steps: Iterable[StepPlan], *, source: int, places_apart: int) -> Spread:
    """Spread of the pieces of a source that are ``places_apart`` in it. Pairs of which one does not
    come within ``steps`` are not counted, so look at an epoch or at many thousand packs."""
    pieces, packs, step_numbers = [], [], []
    for step in steps:
        for pack in step.packs:
            mine = [ref.piece for ref in pack.pieces if ref.source == source]
            pieces += mine
            packs += [pack.number] * len(mine)
            step_numbers += [step.step] * len(mine)
    order = np.argsort(np.asarray(pieces, dtype=np.int64), kind="stable")
    piece = np.asarray(pieces, dtype=np.int64)[order]
    pack = np.asarray(packs, dtype=np.int64)[order]
    step_number = np.asarray(step_numbers, dtype=np.int64)[order]
    partner = np.searchsorted(piece, piece + places_apart)
    found = partner < len(piece)
    found[found] = piece[partner[found]] == piece[found] + places_apart
    first, second = np.flatnonzero(found), partner[found]
    if not len(first):
        return Spread(pairs=0, median_packs=0.0, tenth_packs=0.0, same_step=0.0)
    distance = np.abs(pack[first] - pack[second])
    return Spread(
        pairs=len(first),
        median_packs=float(np.median(distance)),
        tenth_packs=float(np.quantile(distance, 0.1)),
        same_step=float(np.mean(step_number[first] == step_number[second])),
    )
