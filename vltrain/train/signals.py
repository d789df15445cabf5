"""Being asked to stop: SIGTERM (launchers, Slurm) and SIGUSR1 (Slurm's --signal).

In: signals, at any moment and any number of them. Out: a name that the loop asks for between steps;
nothing happens in the handler itself, so a signal cannot cut a save in two. The loop lets all ranks
agree, saves and ends.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Remembers the first signal that was handed over (of two pending ones, the kernel picks)."""

    def __init__(self) -> None:
        self._name: str | None = None

    def name(self) -> str | None:
        """Such as "SIGTERM"; None while none came."""
        return self._name

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals here (main thread only). Once one came they are kept to the end of the
        process: launchers send a second one to what is still closing its files."""
        previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            if self._name is None:
                for number, handler in previous.items():
                    signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._name = self._name or signal.Signals(number).name
