"""Planned steps as rows of words, for the terminal and the page.

In: a planned step, the names of the sources and where pieces lie. Out: what each source gives to
the step, and what each pack holds. Known from index and plan; nothing is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vltrain.batch import Origin, PackPlan, PieceRef, StepPlan
from vltrain.data.config import PackingConfig
from vltrain.evaluate.table import aligned

Locate = Callable[[PieceRef], Origin]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceShare:
    """What one source gives to a step."""

    name: str
    pieces: int
    tokens: int
    supervised: int
    images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PackRow:
    """A pack in one line. fill: tokens / sequence length, None where it bounds no whole sequence.
    sources: each with its pieces."""

    number: int
    modality: str
    pieces: int
    tokens: int
    fill: float | None
    supervised: int
    images: int
    sources: str
    keys: tuple[str, ...]


def source_shares(step: StepPlan, *, names: Sequence[str]) -> list[SourceShare]:
    """In recipe order; sources that give nothing are left out."""
    pieces: dict[int, list[PieceRef]] = {}
    for pack in step.packs:
        for ref in pack.pieces:
            pieces.setdefault(ref.source, []).append(ref)
    return [
        SourceShare(
            name=names[source],
            pieces=len(refs),
            tokens=sum(ref.tokens for ref in refs),
            supervised=sum(ref.supervised for ref in refs),
            images=sum(ref.images for ref in refs),
        )
        for source, refs in sorted(pieces.items())
    ]


def pack_row(
    pack: PackPlan, *, names: Sequence[str], packing: PackingConfig, locate: Locate
) -> PackRow:
    """One pack."""
    counts: dict[str, int] = {}
    for ref in pack.pieces:
        counts[names[ref.source]] = counts.get(names[ref.source], 0) + 1
    bounded = not packing.image_tokens_on_top
    return PackRow(
        number=pack.number,
        modality=pack.modality.value,
        pieces=len(pack.pieces),
        tokens=pack.tokens,
        fill=pack.tokens / packing.sequence_length if bounded else None,
        supervised=pack.supervised,
        images=pack.images,
        sources=", ".join(name if n == 1 else f"{name} x{n}" for name, n in counts.items()),
        keys=tuple(str(locate(ref)) for ref in pack.pieces),
    )


def heading(step: StepPlan, *, packing: PackingConfig) -> str:
    """A step in one line."""
    tokens = sum(step.tokens.values())
    language = step.tokens["language"] / tokens if tokens else 0.0
    words = [
        f"step {step.step + 1}: {step.modality.value if step.modality else 'mixed'}",
        f"{len(step.packs):,} packs",
        f"{sum(len(pack.pieces) for pack in step.packs):,} pieces",
        f"{tokens:,} tokens",
        f"{sum(step.supervised.values()):,} targets",
        f"{sum(pack.images for pack in step.packs):,} images",
        f"language {language:.1%} (the mixture aims at {step.language_share_target:.1%} here)",
    ]
    if packing.enabled:
        words.insert(4, f"{tokens / (len(step.packs) * packing.sequence_length):.1%} full")
    return ", ".join(words)


def terminal_step(
    step: StepPlan,
    *,
    names: Sequence[str],
    packing: PackingConfig,
    locate: Locate,
    shown_packs: int,
) -> str:
    """The step as a short table of plain text."""
    shares = [("source", "pieces", "tokens", "targets", "images")]
    shares += [
        (s.name, f"{s.pieces:,}", f"{s.tokens:,}", f"{s.supervised:,}", f"{s.images:,}")
        for s in source_shares(step, names=names)
    ]
    rows = [
        pack_row(pack, names=names, packing=packing, locate=locate)
        for pack in step.packs[:shown_packs]
    ]
    packs = [("pack", "pieces", "tokens", "targets", "images", "first key")]
    packs += [
        (
            str(row.number),
            str(row.pieces),
            f"{row.tokens:,}",
            f"{row.supervised:,}",
            str(row.images),
            row.keys[0] + (f" and {len(row.keys) - 1} more" if len(row.keys) > 1 else ""),
        )
        for row in rows
    ]
    lines = [heading(step, packing=packing), ""]
    lines += ["  " + line for line in aligned(shares, left=(0,))]
    lines += ["", *("  " + line for line in aligned(packs, left=(5,)))]
    if (more := len(step.packs) - len(rows)) > 0:
        lines.append(f"  ... and {more:,} packs more")
    return "\n".join(lines)
