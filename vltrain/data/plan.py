"""The plan: what every global step holds, before a byte of data is read.

In: a recipe and a seed, and where to start (a cursor). Out: ``StepPlan`` after ``StepPlan``. It is
a pure function of (recipe digest, seed): no rank, worker count, clock or collective enters, so
every rank computes it for itself, and a run on any number of ranks that stops and goes on anywhere
has the same global steps.

How the parts fit, from the bottom: ``order`` makes each source an endless shuffled stream;
``blend`` draws from the streams by weight; ``windows`` packs about a thousand samples at a time;
``groups`` gives packs from one window after the other; this module decides which group the next
step (or, with grouping off, which kind of pack the next pack) comes from, so that the language
share is held.

The share is held in units of the mixture by an exact account (``mixture.Balance``). With grouping,
a step is all one modality: the one that leaves the account nearer to zero, which bounds the error
by one step's units. (Where text tops up multimodal packs, a multimodal step holds some language
too; the account counts it as the language it is.) Without, one group holds both modalities and each
pack is taken from the window's richer or poorer packs. A ramp is followed, never paid back.

The plan ends, for all ranks at the same step, when a finite source is spent; its last step may have
fewer packs.

Cost: 5-8 microseconds per sample; memory is one window per group and two stretches of sizes per
source. The cursor is under 1 KB for two sources and grows with the sources. Restoring costs the one
window that is open, and the stretches of sizes that it lies in. Step N is reached from any cursor
before it, without reading data, but there is no jump to it without a cursor, because the account of
the shares depends on the lengths of all that came before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from vltrain.batch import Modality, PackPlan, StepPlan
from vltrain.data.blend import Blend, Member, ShareOfPack
from vltrain.data.config import WhenSpent
from vltrain.data.groups import PackingGroup
from vltrain.data.mixture import WHOLE, Balance, language_share
from vltrain.data.order import SourceStream, block_size
from vltrain.data.recipe import Recipe
from vltrain.data.windows import Window
from vltrain.errors import CheckpointError

log = logging.getLogger(__name__)

CURSOR_SCHEMA = 2
_BOTH = "both"  # name of the one group of a run with two modalities and grouping off


class Plan:
    """The plan of a recipe under a seed. ``members``: the sources that are drawn."""

    def __init__(self, recipe: Recipe, *, seed: int) -> None:
        self.recipe = recipe
        self.seed = seed
        self.members = [
            self._member(name, weight, language=modality is Modality.language)
            for modality, weights in recipe.weights.items()
            for name, weight in weights.items()
        ]

    def initial_cursor(self) -> dict[str, Any]:
        """The cursor of step 0."""
        return _Walk(self).cursor()

    def cursor_at(self, *, step: int, packs: int, tokens: int) -> dict[str, Any]:
        """A cursor where another recipe's data ended: this one begins, and steps, packs and planned
        tokens are counted on (a ramp goes on where it was)."""
        return self.initial_cursor() | {"step": step, "packs": packs, "tokens": tokens}

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

    def _member(self, name: str, weight: float, *, language: bool) -> Member:
        recipe, config = self.recipe, self.recipe.config
        table, order = recipe.tables[recipe.index(name)], config.order
        stream = SourceStream(
            table,
            seed=self.seed,
            block_samples=block_size(
                table.num_samples, largest=order.block_samples, lanes=order.lanes
            ),
            lanes=order.lanes,
            unit=config.mixture.unit,
        )
        return Member(
            source=recipe.index(name),
            stream=stream,
            weight=weight,
            language=language,
            sample_limit=recipe.sample_limit(name),
            leaves=config.sources[name].when_spent is WhenSpent.leave,
        )

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
        self.units = self.language_units = 0

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
        self.language_units += units[True]
        return units[True], units[False] + units[True], not pieces[False]


class _Walk:
    """A walk along the plan: the state that a cursor is taken of."""

    def __init__(self, plan: Plan) -> None:
        recipe = plan.recipe
        self._plan = plan
        self._config = recipe.config
        self._sequences = recipe.config.batch.sequences
        self._step = 0
        self._packs = 0
        self._tokens = 0
        self._balance = Balance()
        self._blend = Blend(plan.members, packing=recipe.config.packing)
        modalities = list(recipe.weights)
        grouping = recipe.config.mixture.grouping or len(modalities) == 1
        self._groups = {
            name: PackingGroup(
                self._blend,
                name=name,
                language=language,
                topped_up=language is False and recipe.config.packing.top_up_texts_per_sample > 0,
                config=recipe.config,
                seed=plan.seed,
            )
            for name, language in (
                [(modality.value, modality is Modality.language) for modality in modalities]
                if grouping
                else [(_BOTH, None)]
            )
        }
        # Units of the last step of each group, and language among them: what choosing it would add.
        self._step_units = {name: [0, 0] for name in self._groups}

    def next_step(self) -> StepPlan | None:
        """The next step, or None at the end of the plan."""
        share = self._share(self._step, tokens=self._tokens)
        name = self._choose_group(share)
        counted = _Counted()
        packs = self._packs_of(name, share=share, counted=counted, may_open=True)
        if not packs and name == "language" and "multimodal" in self._groups:
            # A text source is spent; some of its texts may lie in packs that they have topped up.
            name = "multimodal"
            packs = self._packs_of(name, share=share, counted=counted, may_open=False)
        if not packs:
            log.info("the data ends before step %d: a finite source is spent", self._step)
            return None
        self._step_units[name] = [counted.units, counted.language_units]
        self._tokens += sum(counted.tokens)
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

    def _packs_of(
        self, name: str, *, share: int, counted: _Counted, may_open: bool
    ) -> list[PackPlan]:
        """The packs of the next step, from one group. Not ``may_open``: only what tops up open
        windows."""
        packs: list[PackPlan] = []
        while len(packs) < self._sequences:
            taken = self._take(name, share=share, packs_in_step=len(packs), may_open=may_open)
            if taken is None:
                break
            window, rows = taken
            language_units, units, is_language = counted.add(window, rows)
            self._balance.count(share, units=units, language_units=language_units)
            packs.append(
                PackPlan(
                    number=self._packs,
                    modality=Modality.language if is_language else Modality.multimodal,
                    pieces=tuple([window.ref(row) for row in rows]),
                )
            )
            self._packs += 1
        return packs

    def _take(
        self, name: str, *, share: int, packs_in_step: int, may_open: bool
    ) -> tuple[Window, list[int]] | None:
        """The next pack of a group. Texts that a multimodal window drew to top up its packs and had
        no room for come before the language group's own."""
        multimodal = self._groups.get("multimodal")
        if name == "language" and multimodal is not None:
            left_over = multimodal.take_left_over()
            if left_over is not None:
                return left_over
        if not (may_open or self._groups[name].holds_topped_up_packs):
            return None
        return self._groups[name].take(
            self._forecast(packs_in_step),
            rich_in_language=self._balance.language_comes_next(share),
        )

    def _share(self, step: int, *, tokens: int) -> int:
        return language_share(step, tokens=tokens, mixture=self._config.mixture)

    def _forecast(self, packs_in_step: int) -> ShareOfPack:
        """Language share at the step that the n-th pack from now on will be part of."""
        step, tokens, sequences = self._step, self._tokens, self._sequences
        step_tokens = tokens // step if step else sequences * self._config.packing.sequence_length

        def share_of_pack(pack: int) -> int:
            ahead = (packs_in_step + pack) // sequences
            return self._share(step + ahead, tokens=tokens + ahead * step_tokens)

        return share_of_pack

    def _choose_group(self, share: int) -> str:
        """The group whose step leaves the account nearer to zero, were it as large as its last
        one."""
        if len(self._groups) == 1:
            return next(iter(self._groups))
        owed = self._balance.language_is_owed
        if share in (0, WHOLE) and owed == 0:
            return "language" if share else "multimodal"
        units, _ = self._step_units["language"]
        units_mixed, language_mixed = self._step_units["multimodal"]
        units = units or units_mixed or 1
        units_mixed = units_mixed or units
        too_much_if_language = (WHOLE - share) * units - owed
        too_little_if_multimodal = owed + share * units_mixed - WHOLE * language_mixed
        return "language" if too_much_if_language <= too_little_if_multimodal else "multimodal"

    def cursor(self) -> dict[str, Any]:
        return {
            "schema": CURSOR_SCHEMA,
            "recipe": self._plan.recipe.digest,
            "seed": self._plan.seed,
            "step": self._step,
            "packs": self._packs,
            "tokens": self._tokens,
            "balance": [self._balance.target, self._balance.language],
            "step_units": {name: list(units) for name, units in self._step_units.items()},
            "positions": list(self._blend.positions),
            "taken_units": list(self._blend.taken),
            "drawn": [self._blend.balance.target, self._blend.balance.language],
            "groups": {name: group.cursor() for name, group in self._groups.items()},
        }

    def restore(self, cursor: dict[str, Any]) -> None:
        self._step, self._packs = cursor["step"], cursor["packs"]
        self._tokens = cursor["tokens"]
        target, language = cursor["balance"]
        self._balance = Balance(target=target, language=language)
        self._step_units = {name: list(units) for name, units in cursor["step_units"].items()}
        self._blend.positions = list(cursor["positions"])
        self._blend.taken = list(cursor["taken_units"])
        target, language = cursor["drawn"]
        self._blend.balance = Balance(target=target, language=language)
        for name, group in self._groups.items():
            group.restore(cursor["groups"][name])
