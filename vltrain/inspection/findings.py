"""A finding of the lint: what, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Level(str, Enum):
    """An error makes the figures of the run wrong; a warning is worth a look."""

    error = "error"
    warning = "warning"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """``check``: a short stable word, for counting and tests."""

    level: Level
    check: str
    what: str
    where: str
    remedy: str

    def words(self) -> str:
        return f"{self.level.value} ({self.check}): {self.where}: {self.what}. {self.remedy}"


def count_words(findings: Sequence[Finding]) -> str:
    """``2 errors, 1 warning``."""
    counts = [(level, sum(f.level is level for f in findings)) for level in Level]
    return ", ".join(f"{n} {level.value}{'' if n == 1 else 's'}" for level, n in counts)
