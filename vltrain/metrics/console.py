"""The progress line.

In: step rows. Out: on a terminal one line that is rewritten in place; elsewhere (a file, a
cluster's log) a plain line every few seconds. The time left is the mean of the last steps times
the steps that remain: a mean over the whole run would take long to forget a slow start. Plain
ANSI on purpose: it needs no package, and a log file stays readable.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

from vltrain.metrics.rows import StepRow
from vltrain.metrics.sinks import Interval, IntervalSummary

_REWRITE = "\r\x1b[2K"  # to the line's start, and erase it
_RECENT_STEPS = 50
_TTY_SECONDS = 0.2
_PLAIN_SECONDS = 10.0


class ConsoleSink:
    """Shows progress on ``stream``: every ``every`` steps on a terminal (at most five times a
    second); elsewhere at the first step, the last, and not more often than every ten seconds
    between."""

    def __init__(
        self,
        stream: TextIO,
        *,
        steps: int,
        every: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._steps = steps
        self._every = every
        self._clock = clock
        self._live = stream.isatty()
        self._interval = Interval()
        self._recent: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._shown_at: float | None = None
        self._line_open = False

    def write(self, row: StepRow) -> None:
        self._interval.add(row)
        self._recent.append(row.seconds)
        if self._due(row):
            self._show(self._interval.take())

    def close(self) -> None:
        if len(self._interval):
            self._show(self._interval.take())
        if self._line_open:
            self._stream.write("\n")
            self._line_open = False
        self._stream.flush()

    def _due(self, row: StepRow) -> bool:
        if row.step >= self._steps or self._shown_at is None:
            return True
        if row.step % self._every:
            return False
        wait = _TTY_SECONDS if self._live else _PLAIN_SECONDS
        return self._clock() - self._shown_at >= wait

    def _show(self, summary: IntervalSummary) -> None:
        self._shown_at = self._clock()
        left = max(self._steps - summary.last.step, 0) * sum(self._recent) / len(self._recent)
        line = progress_line(summary, steps=self._steps, seconds_left=left)
        if self._live:
            width = shutil.get_terminal_size().columns
            self._stream.write(_REWRITE + line[: max(width - 1, 20)])
            self._line_open = True
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


def progress_line(summary: IntervalSummary, *, steps: int, seconds_left: float) -> str:
    """One line for people: ``align 120/400  loss 2.314  lr 1.0e-03  |g| 0.41  12.3k tok/s ...``."""
    row = summary.last
    share = row.language_share_realised
    speed = f"{_short(summary.tokens_per_second)} tok/s"
    words = [
        f"{row.stage} {row.step}/{steps}",
        f"loss {summary.loss:.3f}" if summary.loss is not None else "loss -",
        f"lr {max(row.lr.values(), default=0.0):.1e}",
        f"|g| {summary.grad_norm:.2f}" if summary.grad_norm is not None else "|g| -",
        speed,
        f"text {100 * share:.1f}%" if share is not None else "text -",
        f"wait {100 * summary.data_wait_share:.0f}%",
        f"left {clock_words(seconds_left)}",
    ]
    if summary.mfu is not None:
        words.insert(words.index(speed) + 1, f"mfu {100 * summary.mfu:.1f}%")
    if row.routers is not None:  # of the layer that is spread worst
        words.insert(-1, f"experts {max(row.routers['max_over_mean']):.2f}x")
    if summary.skipped:
        words.append(f"{summary.skipped} SKIPPED")
    return "  ".join(words)


def clock_words(seconds: float) -> str:
    """59 -> "59s", 3599 -> "59m59s", 90000 -> "25h00m"."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _short(number: float) -> str:
    """1234 -> "1.2k", 1234567 -> "1.2M"."""
    if number < 1000:
        return f"{number:.0f}"
    return f"{number / 1000:.1f}k" if number < 1e6 else f"{number / 1e6:.1f}M"
