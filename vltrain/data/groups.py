"""A packing group: one window after the other, from which packs are taken.

In: the blend of the sources. Out: one pack after the other, for ever, or until a finite source is
spent. A group has one open window. The group of multimodal packs that are topped up with text has
more behind it: its windows draw more texts than fit (which fit is not known before they are
packed), and the texts that are left over, in packs of their own, wait for the next language step.
While more than a step of them wait, windows are not topped up.

State (``cursor``): how many windows were opened and, for each that is not used up, its runs and how
many packs left each of its queues. Restoring costs nothing; the open window is planned again (6 ms)
when it is next asked.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from vltrain.data.blend import Blend, Run, ShareOfPack
from vltrain.data.config import DataConfig
from vltrain.data.windows import Holds, Window, open_window

MOST_WAITING_WINDOWS = 32
"""Windows whose left-over texts may wait: what bounds the cursor."""


@dataclass(kw_only=True, slots=True)
class _Opened:
    """A window that is not used up. packs, taken: of each queue. window: None after a restore,
    until it is asked."""

    number: int
    runs: list[Run]
    packs: list[int]
    taken: list[int]
    window: Window | None

    def left(self, queue: int) -> int:
        return self.packs[queue] - self.taken[queue]


class PackingGroup:
    """One group. ``language``: the modality it holds, None for both."""

    def __init__(
        self,
        blend: Blend,
        *,
        name: str,
        language: bool | None,
        topped_up: bool,
        config: DataConfig,
        seed: int,
    ) -> None:
        assert not (topped_up and language is not False), (name, language)
        self._blend = blend
        self._language = language
        self._config = config
        self._key = (seed, "window", name)
        self._holds = (
            Holds.topped_up if topped_up else Holds.both if language is None else Holds.one
        )
        self._windows_opened = 0
        self._windows: deque[_Opened] = deque()

    @property
    def holds_topped_up_packs(self) -> bool:
        """Whether the open window still has packs that text may have topped up."""
        return self._holds is Holds.topped_up and any(opened.left(0) for opened in self._windows)

    def take(
        self, share_of_pack: ShareOfPack, *, rich_in_language: bool
    ) -> tuple[Window, list[int]] | None:
        """The next pack as (window, rows of the window); None when the group is spent.

        ``share_of_pack``: language share of the packs to come, should a window be opened.
        ``rich_in_language``: which queue is preferred where the window holds both modalities.
        """
        queues = (1, 0) if rich_in_language and self._holds is Holds.both else (0, 1)
        if self._holds is Holds.topped_up:
            queues = (0,)
        newest = self._windows[-1] if self._windows else self._open_next(share_of_pack)
        if not any(newest.left(queue) for queue in queues):
            newest = self._open_next(share_of_pack)
        for queue in queues:
            if newest.left(queue):
                return self._from(newest, queue)
        return None

    def take_left_over(self) -> tuple[Window, list[int]] | None:
        """The next pack of texts that fitted into no multimodal pack."""
        for opened in self._windows if self._holds is Holds.topped_up else ():
            if opened.left(1):
                return self._from(opened, 1)
        return None

    def _from(self, opened: _Opened, queue: int) -> tuple[Window, list[int]]:
        window = opened.window = opened.window or self._planned(opened.number, opened.runs)
        rows = window.queues[queue][opened.taken[queue]]
        opened.taken[queue] += 1
        while len(self._windows) > 1 and not any(map(self._windows[0].left, (0, 1))):
            self._windows.popleft()
        return window, rows

    def _open_next(self, share_of_pack: ShareOfPack) -> _Opened:
        packing, blend = self._config.packing, self._blend
        pieces = packing.window_samples
        if self._language is None:
            runs = blend.draw_both(share_of_pack, num_pieces=pieces)
        else:
            runs = blend.draw_one(language=self._language, num_pieces=pieces, whole_packs=True)
        waiting = sum(opened.left(1) for opened in self._windows)
        if (
            self._holds is Holds.topped_up
            and runs
            and waiting < self._config.batch.sequences
            and len(self._windows) < MOST_WAITING_WINDOWS
        ):
            texts = int(pieces * packing.top_up_texts_per_sample)
            runs += blend.draw_one(language=True, num_pieces=texts, whole_packs=False)
        number = self._windows_opened
        self._windows_opened += 1
        window = self._planned(number, runs)
        opened = _Opened(
            number=number,
            runs=runs,
            packs=[len(queue) for queue in window.queues],
            taken=[0, 0],
            window=window,
        )
        if self._holds is not Holds.topped_up:
            self._windows.clear()
        self._windows.append(opened)
        return opened

    def _planned(self, number: int, runs: list[Run]) -> Window:
        return open_window(
            self._blend.members,
            runs=runs,
            holds=self._holds,
            packing=self._config.packing,
            unit=self._config.mixture.unit,
            shuffle_key=(*self._key, number),
        )

    def cursor(self) -> dict[str, Any]:
        """All that decides what comes next; JSON-able."""
        return {
            "windows": self._windows_opened,
            "open": [
                {
                    "number": opened.number,
                    "runs": [list(run) for run in opened.runs],
                    "packs": list(opened.packs),
                    "taken": list(opened.taken),
                }
                for opened in self._windows
            ],
        }

    def restore(self, cursor: dict[str, Any]) -> None:
        """Go to where ``cursor`` was taken."""
        self._windows_opened = cursor["windows"]
        self._windows = deque(
            _Opened(
                number=opened["number"],
                runs=[(index, start, count) for index, start, count in opened["runs"]],
                packs=list(opened["packs"]),
                taken=list(opened["taken"]),
                window=None,
            )
            for opened in cursor["open"]
        )
