"""``steps.jsonl``: the run's own record, one row per step.

In: step rows on the first rank. Out: the file, handed to the operating system after every row (a
killed process loses nothing; a dead machine may lose what is not synced, so ``sync`` runs before
a checkpoint names the row). ``cut_after`` makes the file agree with the checkpoint that a run
resumes from: the steps after it will be done again.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from vltrain.metrics.rows import StepRow, read_rows_with_ends

_log = logging.getLogger(__name__)


class JsonlSink:
    """Appends rows to ``path``. Open it on one process only; call ``cut_after`` before the first
    write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")

    def cut_after(self, step: int) -> StepRow | None:
        """Drop the rows of steps after ``step``, and a torn last line; 0 empties the file.

        Returns the last row that is left (None: none), whose ``chain`` must be the checkpoint's.
        Raises DataError for a damaged row.
        """
        rows = read_rows_with_ends(self.path)
        kept = [(row, end) for row, end in rows if row.step <= step]
        size = kept[-1][1] if kept else 0
        if size < self.path.stat().st_size:
            _log.info("%s: %d rows after step %d cut", self.path, len(rows) - len(kept), step)
            os.truncate(self.path, size)
            os.fsync(self._file.fileno())
        return kept[-1][0] if kept else None

    def write(self, row: StepRow) -> None:
        self._file.write(row.to_line().encode("utf-8"))
        self._file.flush()

    def sync(self) -> None:
        """Force what is written to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
