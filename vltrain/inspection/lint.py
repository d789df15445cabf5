"""What is wrong, or worth a look, with a mix, before money is spent on it.

In: the opened leaves of the mix and of the held-out data, the plan, the steps of the stage. Out:
findings, and an outlook of every source. Errors are what makes figures wrong without a sign:
records that are trained on and evaluated on, and one leaf under two names. Costs the indexes (16
bytes a sample of the mix while duplicates are searched); no shard is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vltrain.batch import Modality
from vltrain.data.config import SourceConfig
from vltrain.data.mixture import modalities_in_use
from vltrain.data.pieces import PieceTable
from vltrain.data.plan import Plan
from vltrain.data.repetition import expected_epochs, leaves_early
from vltrain.inspection.duplicates import duplicate_findings
from vltrain.inspection.findings import Finding, Level
from vltrain.inspection.overlap import overlap_findings


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOutlook:
    """A source at the end of the stage. share: inside its modality, 0 where it is never drawn.
    epochs: expected, from weights and measured sizes. cap: max_epochs."""

    name: str
    modality: Modality
    category: str
    share: float
    samples: int
    tokens: int
    epochs: float
    cap: float | None


@dataclass(frozen=True, kw_only=True)
class LintReport:
    """findings: errors first."""

    findings: tuple[Finding, ...]
    sources: tuple[SourceOutlook, ...]

    @property
    def has_errors(self) -> bool:
        return any(finding.level is Level.error for finding in self.findings)


def lint_mix(
    tables: Sequence[PieceTable], *, held_out: Sequence[PieceTable], plan: Plan, steps: int
) -> LintReport:
    """Check a mix. ``tables`` are the plan's, in recipe order; ``steps`` of the whole stage."""
    sources = outlook(tables, plan=plan, steps=steps)
    drawn = [table for table, source in zip(tables, sources, strict=True) if source.share]
    findings = [
        *overlap_findings(drawn, held_out=held_out),
        *duplicate_findings(drawn),
        *_weight_findings(sources, plan=plan),
        *_epoch_findings(sources, plan=plan, steps=steps),
        *_held_out_findings(held_out, plan=plan),
    ]
    findings.sort(key=lambda finding: list(Level).index(finding.level))
    return LintReport(findings=tuple(findings), sources=tuple(sources))


def outlook(tables: Sequence[PieceTable], *, plan: Plan, steps: int) -> list[SourceOutlook]:
    """Every source by the end of the stage."""
    epochs = expected_epochs(plan, steps)
    shares = {
        name: share for weights in plan.recipe.weights.values() for name, share in weights.items()
    }
    return [
        SourceOutlook(
            name=table.name,
            modality=table.modality,
            category=plan.recipe.config.sources[table.name].category,
            share=shares.get(table.name, 0.0),
            samples=table.num_samples,
            tokens=table.totals["tokens"],
            epochs=epochs[table.name],
            cap=plan.recipe.config.sources[table.name].max_epochs,
        )
        for table in tables
    ]


def _weight_findings(sources: Sequence[SourceOutlook], *, plan: Plan) -> list[Finding]:
    """Sources that no step draws, and why."""
    config = plan.recipe.config
    findings = []
    for source in sources:
        if source.share:
            continue
        check, what, remedy = _why_idle(source, config.sources[source.name], plan)
        findings.append(
            Finding(
                level=Level.warning,
                check=check,
                what=what,
                where=f"data.sources.{source.name}",
                remedy=remedy,
            )
        )
    return findings


def _why_idle(source: SourceOutlook, config: SourceConfig, plan: Plan) -> tuple[str, str, str]:
    """(check, what, remedy) of a source that is never drawn."""
    mixture = plan.recipe.config.mixture
    if config.weight == 0:
        return (
            "zero_weight",
            f"weight=0: none of its {source.samples:,} samples is ever drawn",
            "Fine if it is left out knowingly; otherwise give it a weight, or remove it",
        )
    if mixture.category_weights.get(config.category) == 0:
        return (
            "zero_weight",
            f"its category {config.category!r} has weight 0, so it is never drawn",
            f"Set data.mixture.category_weights.{config.category}, or remove the source",
        )
    return (
        "never_drawn",
        f"never drawn: the mix holds no {source.modality.value} data at any step "
        f"(data.mixture.language_share={mixture.language_share:g})",
        "Change data.mixture.language_share, or remove the source",
    )


def _epoch_findings(sources: Sequence[SourceOutlook], *, plan: Plan, steps: int) -> list[Finding]:
    """Sources that repeat too often, end the stage early, or hardly come at all."""
    limit = plan.recipe.config.mixture.repetition_warning
    findings = []
    for source in sources:
        where = f"data.sources.{source.name}"
        if leaves_early(plan.recipe.config.sources[source.name], epochs=source.epochs):
            findings.append(
                Finding(
                    level=Level.warning,
                    check="leaves_early",
                    what=f"seen max_epochs={source.cap:g} times before step {steps:,}, and leaves "
                    "the mix then (when_spent=leave); the others of its modality take its share",
                    where=where,
                    remedy="Fine if it is meant; otherwise give it less weight, or more data",
                )
            )
        elif source.cap is not None and source.epochs > source.cap:
            end = math.floor(steps * source.cap / source.epochs)
            findings.append(
                Finding(
                    level=Level.warning,
                    check="ends_early",
                    what=f"spent after max_epochs={source.cap:g} at about step {end:,} of "
                    f"{steps:,} ({source.epochs:.1f} epochs would be needed); the stage ends there",
                    where=where,
                    remedy="Give it less weight, raise max_epochs, or lower optim.steps",
                )
            )
        elif source.epochs > limit:
            findings.append(
                Finding(
                    level=Level.warning,
                    check="repeats",
                    what=f"will be seen {source.epochs:.1f} times in {steps:,} steps "
                    f"(data.mixture.repetition_warning={limit:g})",
                    where=where,
                    remedy="Give it less weight, or more data",
                )
            )
        elif source.share and source.epochs * source.samples < 1:
            findings.append(
                Finding(
                    level=Level.warning,
                    check="never_drawn",
                    what=f"has weight, but only {source.epochs * source.samples:.2g} of a sample "
                    f"is expected in {steps:,} steps",
                    where=where,
                    remedy="Give it more weight, or remove it",
                )
            )
    return findings


def _held_out_findings(held_out: Sequence[PieceTable], *, plan: Plan) -> list[Finding]:
    """Modalities that are trained and never evaluated."""
    used = [
        modality
        for modality in Modality
        if modality in modalities_in_use(plan.recipe.config.mixture)
    ]
    missing = [m.value for m in used if not any(table.modality is m for table in held_out)]
    if not missing:
        return []
    return [
        Finding(
            level=Level.warning,
            check="no_held_out",
            what=f"no {' and no '.join(missing)} data is held out, so nothing measures what is "
            "learned of it",
            where="data.held_out",
            remedy="Name sources there (their records must not be in data.sources), and run "
            "launch/prepare.py",
        )
    ]
