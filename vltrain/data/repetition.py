"""How often each source will have been seen by the end of a stage.

In: a plan and a number of steps. Out: expected epochs by source, and a warning for each that will
repeat more often than the mixture allows. An estimate (a few per cent), made from the mean sizes of
some stretches of each source and the mean language share; nothing is planned, so it costs
milliseconds for any number of steps.
"""

from __future__ import annotations

import numpy as np

from vltrain.batch import Modality
from vltrain.data.mixture import WHOLE, language_share
from vltrain.data.order import PieceTable, piece_units
from vltrain.data.plan import Plan

_BLOCKS_SAMPLED = 64
_BLOCK_SAMPLES = 256


def expected_epochs(plan: Plan, steps: int) -> dict[str, float]:
    """Epochs of each source after ``steps`` steps, by name; 0 for a source that is never drawn.

    A source with ``max_epochs`` may end the plan before: then the figure is above ``max_epochs``.
    """
    config = plan.recipe.config
    shares = [language_share(step, config.mixture) / WHOLE for step in range(min(steps, 2**20))]
    mean_share = sum(shares) / len(shares) if shares else 0.0
    of_modality = {Modality.language: mean_share, Modality.multimodal: 1.0 - mean_share}

    samples: dict[str, float] = {}  # relative numbers of samples
    extent = 0.0  # what they take up: tokens where packing is on, sequences where it is off
    for modality, weights in plan.recipe.weights.items():
        for name, weight in weights.items():
            table = plan.recipe.tables[plan.recipe.index(name)]
            pieces, tokens, units = _mean_sizes(table, plan)
            samples[name] = of_modality[modality] * weight / units
            extent += samples[name] * (tokens if config.packing.enabled else pieces)
    sequences = float(steps * config.batch.sequences)
    available = sequences * config.packing.sequence_length if config.packing.enabled else sequences
    scale = available / extent if extent else 0.0
    return {
        table.name: scale * samples.get(table.name, 0.0) / table.num_samples
        for table in plan.recipe.tables
    }


def repetition_warnings(plan: Plan, steps: int) -> list[str]:
    """One line for each source that repeats more often than ``mixture.repetition_warning``."""
    limit = plan.recipe.config.mixture.repetition_warning
    return [
        f"source '{name}' will be seen {epochs:.1f} times in {steps} steps "
        f"(data.mixture.repetition_warning={limit:g}): give it less weight, or more data"
        for name, epochs in expected_epochs(plan, steps).items()
        if epochs > limit
    ]


def _mean_sizes(table: PieceTable, plan: Plan) -> tuple[float, float, float]:
    """Mean pieces, tokens and units of a sample, from evenly spaced stretches of the source."""
    count = min(_BLOCK_SAMPLES, table.num_samples)
    last = table.num_samples - count
    stretches = min(_BLOCKS_SAMPLED, -(-table.num_samples // count))
    firsts = np.unique(np.linspace(0, last, stretches).astype(np.int64)).tolist()
    pieces = tokens = units = 0
    for first in firsts:
        columns = table.pieces_of_samples(first, count)
        pieces += len(columns.piece)
        tokens += int(columns.tokens.sum(dtype=np.int64))
        counted = piece_units(
            plan.recipe.config.mixture.unit, tokens=columns.tokens, supervised=columns.supervised
        )
        units += int(counted.sum(dtype=np.int64))
    samples = len(firsts) * count
    return pieces / samples, tokens / samples, max(units, 1) / samples
