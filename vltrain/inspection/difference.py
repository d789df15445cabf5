"""Two recipes side by side: which values differ, and from which step on the batches do.

In: the two configs and recipes as nested values, the two plans. Out: a list of differing keys, and
the first step whose packs differ. Packs are compared by the keys and lengths of their pieces, in
order, from the plans alone; where both sides have the very same table, by piece number, which costs
no look at the index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any

from vltrain.batch import Origin, PackPlan, PieceRef, StepPlan
from vltrain.data.order import PieceTable
from vltrain.data.plan import Plan
from vltrain.metrics.rows import StepRow

ABSENT = "(absent)"
_SHOWN_KEYS = 4
_LONGEST_VALUE = 160

Locate = Callable[[int, int], Origin]
"""(source, piece) -> where it lies."""
Named = Callable[[PieceRef], Hashable]


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueDifference:
    """A key with another value on either side, as text; ABSENT where a side has no such key."""

    key: str
    left: str
    right: str

    def words(self) -> str:
        return f"{self.key}: {self.left} there, {self.right} here"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepDifference:
    """The first step (1 is the first) that differs, and how."""

    step: int
    words: str


@dataclass(frozen=True, kw_only=True)
class PlanSide:
    """A plan, and where its pieces lie."""

    plan: Plan
    locate: Locate

    @property
    def tables(self) -> Sequence[PieceTable]:
        return self.plan.recipe.tables


def value_differences(left: Any, right: Any) -> list[ValueDifference]:
    """Where two nested mappings differ (lists are values), in the order of the left one. What only
    one side has is one difference, however much is inside."""
    return list(_differences(left, right, prefix=""))


def recipe_values(facts: Mapping[str, Any]) -> dict[str, Any]:
    """``Recipe.facts`` with the sources by name; their place in the list counts too."""
    sources = {
        source["name"]: {"place": place, **{k: v for k, v in source.items() if k != "name"}}
        for place, source in enumerate(facts["sources"])
    }
    return {**facts, "sources": sources}


def first_planned_difference(
    left: PlanSide, right: PlanSide, *, steps: int
) -> StepDifference | None:
    """The first of ``steps`` steps whose packs differ; None where all are the same."""
    same = _same_tables(left, right)
    name_left, name_right = _naming(left, same), _naming(right, same)
    pairs = zip_longest(islice(left.plan.steps(), steps), islice(right.plan.steps(), steps))
    for number, (ours, theirs) in enumerate(pairs, start=1):
        if ours is None or theirs is None:
            where = "there" if ours is None else "here"
            return StepDifference(
                step=number, words=f"no step {number} {where}: a source with max_epochs is spent"
            )
        packs_left = [_pack_names(pack, name_left) for pack in ours.packs]
        packs_right = [_pack_names(pack, name_right) for pack in theirs.packs]
        if packs_left != packs_right:
            words = _how(ours, theirs, packs_left, packs_right)
            return StepDifference(
                step=number, words=f"{words}{_example(left, right, ours, theirs)}"
            )
    return None


def first_recorded_difference(
    left: Mapping[int, StepRow], right: Mapping[int, StepRow]
) -> tuple[int, int | None]:
    """(steps that both runs recorded, the first of them whose digests differ or None)."""
    both = sorted(left.keys() & right.keys())
    different = (step for step in both if left[step].digest != right[step].digest)
    return len(both), next(different, None)


def _differences(left: Any, right: Any, *, prefix: str) -> Iterator[ValueDifference]:
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        for name in dict.fromkeys([*left, *right]):
            yield from _differences(
                left.get(name, ABSENT),
                right.get(name, ABSENT),
                prefix=f"{prefix}.{name}" if prefix else str(name),
            )
    elif left != right:
        yield ValueDifference(key=prefix, left=_shown(left), right=_shown(right))


def _shown(value: Any) -> str:
    """A value in one line of bearable length; null and empty entries of a mapping say nothing."""
    if isinstance(value, Mapping):
        said = [f"{name}: {v}" for name, v in value.items() if v not in (None, "", {}, [])]
        value = "{" + ", ".join(said) + "}"
    text = str(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def _same_tables(left: PlanSide, right: PlanSide) -> set[str]:
    """Names of the sources that both sides have with the same content and lengths."""
    ours = {table.name: table.digest for table in left.tables}
    theirs = {table.name: table.digest for table in right.tables}
    return {name for name in ours if ours[name] == theirs.get(name)}


def _naming(side: PlanSide, same: set[str]) -> Named:
    """What a piece is called, the same on both sides for the same piece of the same data."""
    names = [table.name for table in side.tables]

    def named(ref: PieceRef) -> Hashable:
        if names[ref.source] in same:
            return names[ref.source], ref.piece
        return str(side.locate(ref.source, ref.piece)), ref.tokens, ref.supervised

    return named


def _pack_names(pack: PackPlan, named: Named) -> tuple[Hashable, ...]:
    return tuple(named(ref) for ref in pack.pieces)


def _how(
    ours: StepPlan,
    theirs: StepPlan,
    packs_left: list[tuple[Hashable, ...]],
    packs_right: list[tuple[Hashable, ...]],
) -> str:
    """How far apart the two steps are."""
    if Counter(packs_left) == Counter(packs_right):
        return "the same packs in another order"
    pieces_left = Counter(piece for pack in packs_left for piece in pack)
    pieces_right = Counter(piece for pack in packs_right for piece in pack)
    common = (pieces_left & pieces_right).total()
    if pieces_left == pieces_right:
        return f"the same {common} pieces in other packs"
    kinds = [step.modality.value if step.modality else "mixed" for step in (ours, theirs)]
    return (
        f"{len(packs_left)} {kinds[0]} packs with {pieces_left.total()} pieces there, "
        f"{len(packs_right)} {kinds[1]} packs with {pieces_right.total()} here, {common} pieces in "
        "common"
    )


def _example(left: PlanSide, right: PlanSide, ours: StepPlan, theirs: StepPlan) -> str:
    """The first pack that differs, in keys."""
    for pack_left, pack_right in zip(ours.packs, theirs.packs, strict=False):
        keys = [_keys(pack, side) for pack, side in ((pack_left, left), (pack_right, right))]
        if keys[0] != keys[1]:
            shown = [", ".join(k[:_SHOWN_KEYS]) + ", ..." * (len(k) > _SHOWN_KEYS) for k in keys]
            return (
                f"\n  pack {pack_left.number} there: {shown[0]}"
                f"\n  pack {pack_right.number} here: {shown[1]}"
            )
    return ""


def _keys(pack: PackPlan, side: PlanSide) -> list[str]:
    return [str(side.locate(ref.source, ref.piece)) for ref in pack.pieces]
