"""Bad records are counted, listed and bounded.

In: faults with the step that met them. Out: rows of ``ledger.jsonl`` and, above the budget, an
error with the list. A record is never skipped or replaced without a row here. Every rank counts
the same gathered faults, so that the budget stops all of them at one step; the first rank writes
the ledger.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vltrain.batch import Fault
from vltrain.data.config import FaultConfig
from vltrain.errors import FaultBudgetExceeded
from vltrain.step_lines import cut_lines_after

LEDGER_SCHEMA = 1
SHOWN = 10
"""Faults named in an error; the whole list is in the file that the error names."""


def over_budget(bad: int, *, read: int, faults: FaultConfig) -> bool:
    """Whether ``bad`` of ``read`` records of a source are more than the budget bears."""
    return bad > faults.grace and bad > faults.budget * read


def budget_message(
    source: str, shown: Sequence[Fault], *, bad: int, read: int, faults: FaultConfig, full: Path
) -> str:
    """What FaultBudgetExceeded says: counts, budget, reasons, the first faults, where the rest
    is."""
    reasons = Counter(fault.reason for fault in shown)
    lines = [f"  {fault.origin}: {fault.reason}: {fault.detail}" for fault in shown[:SHOWN]]
    if bad > len(lines):
        lines.append(f"  ... {bad - len(lines)} more in {full}")
    return (
        f"source {source!r}: {bad} of {read} records cannot be used "
        f"({100 * bad / max(read, 1):.2f} %; "
        f"data.faults.budget={faults.budget} bears {100 * faults.budget:.2f} %, "
        f"data.faults.grace="
        f"{faults.grace}); by reason: {dict(reasons.most_common())}\n"
        + "\n".join(lines)
        + "\nMend or remove these records, or raise data.faults.budget."
    )


class Ledger:
    """``ledger.jsonl`` of a run: one row per fault, appended and flushed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, faults: Iterable[Fault], *, step: int) -> None:
        rows = [
            {
                "schema": LEDGER_SCHEMA,
                "step": step,
                "source": fault.origin.source,
                "shard": fault.origin.shard,
                "key": fault.origin.key,
                "reason": fault.reason,
                "detail": fault.detail,
                "action": fault.action,
            }
            for fault in faults
        ]
        if not rows:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def cut_after(self, step: int) -> int:
        """Remove the rows of later steps (on resume), and a half-written last row. Returns how
        many rows remain."""
        return cut_lines_after(self.path, step)


class FaultBudget:
    """Counts what was read and what was bad, by source, and ends the run above the budget.

    ``state()`` goes into the checkpoint (JSON-able) and comes back as ``state``.
    """

    def __init__(
        self, config: FaultConfig, *, ledger: Path, state: Mapping[str, Any] | None = None
    ) -> None:
        self._config, self._ledger = config, ledger
        self._read: Counter[str] = Counter((state or {}).get("read", {}))
        self._bad: Counter[str] = Counter((state or {}).get("bad", {}))
        self._recent: dict[str, list[Fault]] = {}

    def count(self, *, read: Mapping[str, int], faults: Sequence[Fault]) -> None:
        """Add a step: pieces read and faults met, by source. Raises FaultBudgetExceeded."""
        self._read.update(read)
        for fault in faults:
            source = fault.origin.source
            self._bad[source] += 1
            self._recent.setdefault(source, []).append(fault)
            del self._recent[source][: -10 * SHOWN]
        for source in sorted({fault.origin.source for fault in faults}):
            bad, seen = self._bad[source], self._read[source]
            if over_budget(bad, read=seen, faults=self._config):
                raise FaultBudgetExceeded(
                    budget_message(
                        source,
                        self._recent[source],
                        bad=bad,
                        read=seen,
                        faults=self._config,
                        full=self._ledger,
                    )
                )

    def bad(self) -> dict[str, int]:
        """Bad records of each source that has some, since the run began."""
        return dict(self._bad)

    def state(self) -> dict[str, dict[str, int]]:
        return {"read": dict(self._read), "bad": dict(self._bad)}
