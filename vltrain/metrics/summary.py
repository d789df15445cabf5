"""``summary.json``: what a stage trained, and that the rest did not change.

In: counts and digests that the stage takes at its start and its end. Out: a small file in the run
directory for people and for the report. A frozen part counts as unchanged only where both digests
(over the digests of its frozen tensors) are there and equal.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from vltrain.errors import DataError

SCHEMA = 1
SUMMARY_NAME = "summary.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class PartSummary:
    """One part of the model. Digests are hex, over the tensors of the part that do not train; None
    where all train (``frozen_tensors`` is 0) or where it was not taken."""

    part: str
    parameters: int
    trainable: int
    trained_tensors: tuple[str, ...]
    frozen_tensors: int
    frozen_digest_before: str | None
    frozen_digest_after: str | None

    @property
    def is_frozen_unchanged(self) -> bool | None:
        """None: nothing is frozen, or not proved yet."""
        if not self.frozen_tensors or not (self.frozen_digest_before and self.frozen_digest_after):
            return None
        return self.frozen_digest_before == self.frozen_digest_after


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSummary:
    """``init_from``: where the weights came from, in words. ``notes``: for the report's reader."""

    number: int
    name: str
    steps: int
    init_from: str
    parts: tuple[PartSummary, ...]
    notes: tuple[str, ...] = ()


def write_summary(directory: Path, *, summary: StageSummary) -> Path:
    """Write the run's summary (first process only); replaces an earlier one."""
    path = directory / SUMMARY_NAME
    text = json.dumps({"schema": SCHEMA, **asdict(summary)}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def read_summary(directory: Path) -> StageSummary | None:
    """The run's summary; None where there is none yet. Raises DataError for another file."""
    path = directory / SUMMARY_NAME
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: expected a JSON object ({error})") from error
    if not isinstance(stored, dict) or stored.pop("schema", None) != SCHEMA:
        raise DataError(f"{path}: expected a summary of schema {SCHEMA}; run the stage again")
    parts = tuple(
        PartSummary(**{**part, "trained_tensors": tuple(part["trained_tensors"])})
        for part in stored.pop("parts")
    )
    return StageSummary(**{**stored, "parts": parts, "notes": tuple(stored["notes"])})
