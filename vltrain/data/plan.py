"""The plan: what every global step holds, before a byte of data is read.

In: a recipe and a seed, and where to start (a cursor). Out: ``StepPlan`` after ``StepPlan``. It is
a pure function of (recipe digest, seed): no rank, worker count, clock or collective enters, so
every rank computes it for itself, and a run on any number of ranks that stops and goes on anywhere
has the same global steps.

How the parts fit, from the bottom: ``order`` makes each source an endless shuffled stream;
``windows`` blends the streams by weight and packs about a thousand samples at a time; ``lanes``
keeps several windows open and takes packs from them in turn; this module decides which group the
next step (or, with grouping off, which kind of pack the next pack) comes from, so that the language
share is held.

The share is held in units of the mixture by an exact account (``mixture.Balance``). With grouping,
a step is all one modality: the one that leaves the account nearer to zero, which bounds the error
by one step's units. Without, one group holds both modalities and each pack is taken from the
windows' richer or poorer packs. A ramp is followed, never paid back.

The plan ends, for all ranks at the same step, when a finite source is spent; its last step may have
fewer packs.

Cost: 6-10 microseconds per sample (100,000 to 150,000 samples/s on one core); memory is the open
windows (lanes x window_samples pieces per group). The cursor is 3 KB for two sources and grows with
lanes x sources. A step costs what planning it costs: step N is reached from any cursor before it,
without reading data, but there is no jump to it without a cursor, because the account of the shares
depends on the lengths of all that came before.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any

from vltrain.batch import Modality, PackPlan, StepPlan
from vltrain.data.lanes import LaneGroup
from vltrain.data.mixture import WHOLE, Balance, language_share
from vltrain.data.order import SourceStream, block_size
from vltrain.data.recipe import Recipe
from vltrain.data.windows import Member, Window
from vltrain.errors import CheckpointError

log = logging.getLogger(__name__)

CURSOR_SCHEMA = 1
_BOTH = "both"  # name of the one group of a run with two modalities and grouping off


class Plan:
    """The plan of a recipe under a seed."""

    def __init__(self, recipe: Recipe, *, seed: int) -> None:
        self.recipe = recipe
        self.seed = seed
        by_modality = {m: self._members(m) for m in recipe.weights}
        grouping = recipe.config.mixture.grouping or len(by_modality) == 1
        self.groups: dict[str, list[Member]] = (
            {modality.value: members for modality, members in by_modality.items()}
            if grouping
            else {_BOTH: [member for members in by_modality.values() for member in members]}
        )

    def initial_cursor(self) -> dict[str, Any]:
        """The cursor of step 0."""
        return _Walk(self).cursor()

    def cursor_at(self, *, step: int, packs: int) -> dict[str, Any]:
        """A cursor where another recipe's data ended: this one begins, and steps and packs are
        counted on (a ramp goes on at that step)."""
        return self.initial_cursor() | {"step": step, "packs": packs}

    def steps(self, cursor: dict[str, Any] | None = None) -> Iterator[StepPlan]:
        """Steps from ``cursor`` on (None: from step 0), without end or until a finite source is
        spent.

        Raises CheckpointError where the cursor belongs to another recipe or seed.
        """
        walk = _Walk(self)
        if cursor is not None:
            self._check_cursor(cursor)
            walk.restore(cursor)
        while (step := walk.next_step()) is not None:
            yield step

    def _members(self, modality: Modality) -> list[Member]:
        recipe, config = self.recipe, self.recipe.config
        members = []
        for name, weight in recipe.weights[modality].items():
            table = recipe.tables[recipe.index(name)]
            stream = SourceStream(
                table,
                seed=self.seed,
                block_samples=block_size(
                    table.num_samples, largest=config.order.block_samples, lanes=config.order.lanes
                ),
                unit=config.mixture.unit,
                held_samples=config.packing.window_samples,
            )
            members.append(
                Member(
                    source=recipe.index(name),
                    stream=stream,
                    weight=weight,
                    language=modality is Modality.language,
                    sample_limit=recipe.sample_limit(name),
                )
            )
        return members

    def _check_cursor(self, cursor: dict[str, Any]) -> None:
        for what, ours in (
            ("schema", CURSOR_SCHEMA),
            ("recipe", self.recipe.digest),
            ("seed", self.seed),
        ):
            if cursor.get(what) != ours:
                raise CheckpointError(
                    f"the checkpoint's data cursor has {what}={cursor.get(what)!r}, this run has "
                    f"{what}={ours!r}: the data would go on in another order. Resume with the "
                    "config that the run was started with (ranks, micro-batch, workers and engine "
                    "may change; sources, mixture, packing, order, batch.sequences and seed may "
                    "not), or start a new run from the weights with init_from."
                )


class _Counted:
    """Counts of a step: [multimodal, language], by the modality of each piece's source."""

    def __init__(self) -> None:
        self.tokens = [0, 0]
        self.supervised = [0, 0]
        self.units = 0

    def add(self, window: Window, rows: list[int]) -> tuple[int, int, bool]:
        """Count a pack; its language units, its units, and whether all of it is language."""
        pieces = [0, 0]
        units = [0, 0]
        for row in rows:
            side = window.language[row]
            pieces[side] += 1
            units[side] += window.units[row]
            self.tokens[side] += window.tokens[row]
            self.supervised[side] += window.supervised[row]
        self.units += units[False] + units[True]
        return units[True], units[False] + units[True], not pieces[False]


class _Walk:
    """A walk along the plan: the state that a cursor is taken of."""

    def __init__(self, plan: Plan) -> None:
        config = plan.recipe.config
        self._plan = plan
        self._sequences = config.batch.sequences
        self._unit = config.mixture.unit
        self._share = functools.lru_cache(maxsize=4096)(
            functools.partial(language_share, mixture=config.mixture)
        )
        self._step = 0
        self._packs = 0
        self._balance = Balance()
        self._groups = {
            name: LaneGroup(
                members, name=name, config=config, seed=plan.seed, share_of_step=self._share
            )
            for name, members in plan.groups.items()
        }
        # Units of the last step of each group: the size of what choosing it would add.
        self._step_units = dict.fromkeys(self._groups, 0)

    def next_step(self) -> StepPlan | None:
        """The next step, or None at the end of the plan."""
        share = self._share(self._step)
        name = self._choose_group(share)
        group = self._groups[name]
        counted = _Counted()
        packs: list[PackPlan] = []
        while len(packs) < self._sequences:
            rich = self._balance.language_comes_next(share)
            taken = group.take(step=self._step, rich_in_language=rich)
            if taken is None:
                break
            lane, window, rows = taken
            language_units, units, is_language = counted.add(window, rows)
            self._balance.count(share, units=units, language_units=language_units)
            packs.append(
                PackPlan(
                    number=self._packs,
                    modality=Modality.language if is_language else Modality.multimodal,
                    lane=lane,
                    pieces=tuple([window.ref(row) for row in rows]),
                )
            )
            self._packs += 1
        if not packs:
            log.info("the data ends before step %d: a finite source is spent", self._step)
            return None
        self._step_units[name] = counted.units
        self._step += 1
        return StepPlan(
            step=self._step - 1,
            modality=None if name == _BOTH else Modality(name),
            packs=tuple(packs),
            tokens={"language": counted.tokens[1], "multimodal": counted.tokens[0]},
            supervised={"language": counted.supervised[1], "multimodal": counted.supervised[0]},
            language_share_target=share / WHOLE,
            cursor_after=self.cursor(),
        )

    def _choose_group(self, share: int) -> str:
        """The group whose step leaves the account nearer to zero, were it as large as its last
        one."""
        if len(self._groups) == 1:
            return next(iter(self._groups))
        if share in (0, WHOLE) and self._balance.language_is_owed == 0:
            return "language" if share else "multimodal"
        language = self._step_units["language"] or self._step_units["multimodal"] or 1
        multimodal = self._step_units["multimodal"] or language
        too_much_if_language = (WHOLE - share) * language - self._balance.language_is_owed
        too_little_if_multimodal = self._balance.language_is_owed + share * multimodal
        return "language" if too_much_if_language <= too_little_if_multimodal else "multimodal"

    def cursor(self) -> dict[str, Any]:
        return {
            "schema": CURSOR_SCHEMA,
            "recipe": self._plan.recipe.digest,
            "seed": self._plan.seed,
            "step": self._step,
            "packs": self._packs,
            "balance": [self._balance.target, self._balance.language],
            "step_units": dict(self._step_units),
            "groups": {name: group.cursor() for name, group in self._groups.items()},
        }

    def restore(self, cursor: dict[str, Any]) -> None:
        self._step, self._packs = cursor["step"], cursor["packs"]
        target, language = cursor["balance"]
        self._balance = Balance(target=target, language=language)
        self._step_units = dict(cursor["step_units"])
        for name, group in self._groups.items():
            group.restore(cursor["groups"][name])
