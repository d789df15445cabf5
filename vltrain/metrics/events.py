"""``events.jsonl``: what happened to a run beside its steps, one row per event, for people and
reports.

In: events, on the first rank. Out: the file; each row is handed to the operating system at once. On
resume the rows after the checkpoint are cut, as those of the steps are.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from vltrain.step_lines import cut_lines_after

SCHEMA = 1
OTHER_DATA = "other_data"
"""The run goes on after this step with data that was accepted as other, from its beginning."""


class EventLog:
    """Appends to ``path``; no event, no file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: str, *, step: int, detail: str) -> None:
        """``event``: a short stable word for counting (docs/run_directory.md lists them)."""
        row = {"schema": SCHEMA, "step": step, "time": time.time(), "event": event}
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({**row, "detail": detail}, ensure_ascii=False) + "\n")

    def cut_after(self, step: int) -> None:
        """Drop the rows of steps after ``step``, and a torn last line."""
        cut_lines_after(self.path, step)


def last_step_of(path: Path, *, event: str) -> int:
    """The step of the last ``event`` in an events file; 0 where there is none. A torn last line is
    left out."""
    if not path.exists():
        return 0
    with path.open(encoding="utf-8", newline="\n") as lines:  # details may hold other line ends
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return max((row["step"] for row in rows if row["event"] == event), default=0)
