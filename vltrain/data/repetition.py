"""How often each source will have been seen by the end of a stage.

In: a plan and a number of steps. Out: expected epochs by source, and a warning for each that will
repeat more often than the mixture allows or that will reach its ``max_epochs``. An estimate (a few
per cent), made from the mean sizes of some stretches of each source and the mean language share;
nothing is planned, so it costs milliseconds for any number of steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vltrain.batch import Modality
from vltrain.data.config import SourceConfig, WhenSpent
from vltrain.data.mixture import WHOLE, language_share
from vltrain.data.order import PieceTable, piece_units
from vltrain.data.plan import Plan

_BLOCKS_SAMPLED = 64
_BLOCK_SAMPLES = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class _Drawn:
    """A source as it is drawn. weight: inside its modality; pieces, tokens, units: means of a
    sample."""

    name: str
    modality: Modality
    weight: float
    pieces: float
    tokens: float
    units: float


def expected_epochs(plan: Plan, steps: int) -> dict[str, float]:
    """Epochs of each source after ``steps`` steps, by name; 0 for a source that is never drawn.

    A source with ``max_epochs`` may end the plan before: then the figure is above ``max_epochs``.
    What a source that leaves the mix no longer takes is shared among the others.
    """
    recipe = plan.recipe
    config, tables = recipe.config, {table.name: table for table in recipe.tables}
    drawn = [
        _drawn(tables[name], plan, modality=modality, weight=weight)
        for modality, weights in recipe.weights.items()
        for name, weight in weights.items()
    ]
    sequences = float(steps * config.batch.sequences)
    shares = _mean_shares(plan, steps, drawn)
    # Of one unit of the mixture: what it takes up, in tokens where packing is on, else sequences.
    extent = sum(
        shares[s.modality] * s.weight * (s.tokens if config.packing.enabled else s.pieces) / s.units
        for s in drawn
    )
    room = sequences * config.packing.sequence_length if config.packing.enabled else sequences
    units = {s.name: room / extent * shares[s.modality] * s.weight for s in drawn}
    for modality in recipe.weights:
        mine = [s for s in drawn if s.modality is modality]
        units |= _shared_out(mine, {s.name: units[s.name] for s in mine}, plan)
    epochs = {s.name: units[s.name] / s.units / tables[s.name].num_samples for s in drawn}
    return {name: epochs.get(name, 0.0) for name in tables}


def _drawn(table: PieceTable, plan: Plan, *, modality: Modality, weight: float) -> _Drawn:
    pieces, tokens, units = _mean_sizes(table, plan)
    return _Drawn(
        name=table.name,
        modality=modality,
        weight=weight,
        pieces=pieces,
        tokens=tokens,
        units=units,
    )


def _mean_shares(plan: Plan, steps: int, drawn: list[_Drawn]) -> dict[Modality, float]:
    """Mean share of each modality over the steps."""
    config = plan.recipe.config
    tokens_per_step = float(config.batch.sequences * config.packing.sequence_length)
    if not config.packing.enabled:
        mean = sum(s.weight * s.tokens / s.pieces for s in drawn) / sum(s.weight for s in drawn)
        tokens_per_step = config.batch.sequences * mean
    shares = [
        language_share(step, tokens=int(step * tokens_per_step), mixture=config.mixture) / WHOLE
        for step in range(min(steps, 2**20))
    ]
    language = sum(shares) / len(shares) if shares else 0.0
    return {Modality.language: language, Modality.multimodal: 1.0 - language}


def _shared_out(mine: list[_Drawn], units: dict[str, float], plan: Plan) -> dict[str, float]:
    """Units of the sources of a modality, when those that have left give theirs to the others."""
    recipe = plan.recipe
    most = {
        s.name: recipe.sample_limit(s.name) * s.units
        for s in mine
        if recipe.config.sources[s.name].when_spent is WhenSpent.leave
    }
    staying = {s.name: s.weight for s in mine}
    while gone := [name for name in staying if units[name] > most.get(name, np.inf)]:
        surplus = sum(units[name] - most[name] for name in gone)
        for name in gone:
            units[name] = most[name]
            del staying[name]
        total = sum(staying.values())
        for name, weight in staying.items():
            units[name] += surplus * weight / total
    return units


def leaves_early(source: SourceConfig, *, epochs: float) -> bool:
    """Whether a source that is expected to come so often leaves the mix before the last step. (What
    is expected of it ends where it leaves.)"""
    most = source.max_epochs
    return source.when_spent is WhenSpent.leave and most is not None and epochs > 0.99 * most


def repetition_warnings(plan: Plan, steps: int) -> list[str]:
    """One line for each source that repeats more often than ``mixture.repetition_warning``, or that
    is spent before the last step."""
    config = plan.recipe.config
    limit = config.mixture.repetition_warning
    warnings = []
    for name, epochs in expected_epochs(plan, steps).items():
        source = config.sources[name]
        most = source.max_epochs
        if leaves_early(source, epochs=epochs):
            warnings.append(
                f"source '{name}' will have been seen {most:g} times (its max_epochs) before step "
                f"{steps} and leave the mix: give it less weight, or more data"
            )
        elif most is not None and epochs > most:
            warnings.append(
                f"source '{name}' will have been seen {most:g} times (its max_epochs) at about "
                f"step {int(steps * most / epochs)} of {steps}, and the run will end there: give "
                f"it less weight, or set data.sources.{name}.when_spent=leave"
            )
        if epochs > limit and (most is None or most > limit):
            warnings.append(
                f"source '{name}' will be seen {epochs:.1f} times in {steps} steps "
                f"(data.mixture.repetition_warning={limit:g}): give it less weight, or more data, "
                f"or a limit (data.sources.{name}.max_epochs)"
            )
    return warnings


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
