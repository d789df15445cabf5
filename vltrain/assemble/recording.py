"""What a run writes while it trains: rows, ledger, console, wandb, config. First rank only.

In: the config, the checkpoint that is resumed. Out: the files of the run directory. On resume
everything after the checkpoint is cut, so that a file never tells of a step twice.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from vltrain import distributed
from vltrain.assemble.datapath import DataPath
from vltrain.batch import Example, Fault
from vltrain.checkpoint.manifest import Manifest
from vltrain.checkpoint.store import Checkpoint
from vltrain.data.faults import Ledger
from vltrain.errors import RecordFault, RecordingError
from vltrain.metrics.console import ConsoleSink
from vltrain.metrics.events import OTHER_DATA, EventLog
from vltrain.metrics.jsonl import JsonlSink
from vltrain.metrics.peaks import with_mfu
from vltrain.metrics.rows import StepRow
from vltrain.metrics.sinks import Sink, Sinks
from vltrain.metrics.wandb_sink import WandbSink
from vltrain.processing.tokens import TextTokenizer
from vltrain.runconfig import RunConfig, to_yaml

log = logging.getLogger(__name__)

WANDB_ID = "wandb_id"
"""File of the run directory; the id outlives a run that dies before its first checkpoint."""
SHOWN_TOKENS = 96


class Recording:
    """Open files and sinks; does nothing on the other ranks. peak_flops: see ``run_peak``."""

    def __init__(
        self, config: RunConfig, *, resumed: Checkpoint | None, peak_flops: float | None
    ) -> None:
        self.wandb_id: str | None = None
        self._peak_flops = peak_flops
        self._run_dir = config.run_dir
        self._ledger = Ledger(config.run_dir / "ledger.jsonl")
        self._events = EventLog(config.run_dir / "events.jsonl")
        self._rows: JsonlSink | None = None
        self._sinks = Sinks([])
        if not distributed.is_first():
            return
        step = resumed.manifest.step if resumed is not None else 0
        with writing_to(self._run_dir):
            (config.run_dir / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
            self._rows = JsonlSink(config.run_dir / "steps.jsonl")
            last = self._rows.cut_after(step)
            if resumed is not None and last is not None:
                _refuse_rows_of_another_run(last, resumed)
            self._ledger.cut_after(step)
            self._events.cut_after(step)
        sinks: list[Sink] = [
            self._rows,
            ConsoleSink(sys.stderr, steps=config.optim.steps, every=config.metrics.log_every),
        ]
        if config.metrics.wandb.enabled:
            wandb = _wandb(config, resumed)
            self.wandb_id = wandb.run_id
            sinks.append(wandb)
        self._sinks = Sinks(sinks)

    def row(self, row: StepRow) -> None:
        with writing_to(self._run_dir):
            self._sinks.write(with_mfu(row, peak_flops=self._peak_flops))

    def faults(self, step: int, faults: Sequence[Fault]) -> None:
        if distributed.is_first():
            with writing_to(self._run_dir):
                self._ledger.append(faults, step=step)

    def event(self, word: str, step: int, detail: str) -> None:
        with writing_to(self._run_dir):
            self._events.append(word, step=step, detail=detail)

    def other_data(self, left: Manifest) -> None:
        """That data which was accepted as other begins after the checkpoint ``left``."""
        if distributed.is_first():
            detail = f"until here recipe {left.recipe_digest} with seed {left.seed}"
            self.event(OTHER_DATA, left.step, detail)

    def sync(self) -> None:
        """Before a checkpoint names these rows."""
        if self._rows is not None:
            with writing_to(self._run_dir):
                self._rows.sync()

    def close(self) -> None:
        self._sinks.close()


def _refuse_rows_of_another_run(last: StepRow, resumed: Checkpoint) -> None:
    """Rows are forced to the disk before a checkpoint names them, so its own are always there."""
    manifest = resumed.manifest
    if (last.step, last.chain) != (manifest.step, manifest.chain_head):
        raise RecordingError(
            f"steps.jsonl ends at step {last.step} with chain {last.chain}, {resumed.directory} is "
            f"of step {manifest.step} with chain {manifest.chain_head}: the rows are of another "
            "run. Move steps.jsonl away and the same command goes on with a new one"
        )


@contextlib.contextmanager
def writing_to(directory: Path) -> Iterator[None]:
    """A full disk is the user's to mend, not a traceback."""
    try:
        yield
    except OSError as error:
        raise RecordingError(
            f"the run's files in {directory} cannot be written: {error}. Make room or mend the "
            "permissions; the same command goes on from the last checkpoint"
        ) from error


def _wandb(config: RunConfig, resumed: Checkpoint | None) -> WandbSink:
    stored = config.run_dir / WANDB_ID
    run_id = resumed.manifest.run.get("wandb_id") if resumed is not None else None
    if run_id is None and stored.exists():
        run_id = stored.read_text(encoding="utf-8").strip()
    sink = WandbSink(
        config.metrics.wandb,
        directory=config.run_dir,
        name=config.run.name,
        run_id=run_id,
        config=yaml.safe_load(to_yaml(config)),
        every=config.metrics.log_every,
    )
    stored.write_text(sink.run_id + "\n", encoding="utf-8")
    return sink


def show_masked_examples(config: RunConfig, data: DataPath) -> None:
    """Log the first piece of every source with what is learned of it in brackets: a wrong mask is
    seen at once, and otherwise shows only as a loss that falls too fast."""
    if not distributed.is_first():
        return
    for number, name in enumerate(config.data.sources):
        try:
            example = data.reader.read_piece(number, 0)
        except RecordFault as fault:
            log.warning("source %s: its first record cannot be read: %s", name, fault)
            continue
        shown = mark_learned(example, data.encoder.tokenizer)
        log.info("source %s, learned in [ ]: %s", name, shown)


def mark_learned(example: Example, tokenizer: TextTokenizer) -> str:
    """The example's first tokens as text, learned runs in brackets, images as <image xN>. Where
    nothing of them is learned, the tokens around the first that is."""
    position, end = _shown(example)
    words: list[str] = ["... "] if position else []
    starts = dict(zip(example.image_starts.tolist(), example.image_tokens.tolist(), strict=True))
    while position < end:
        if position in starts:
            words.append(f"<image x{starts[position]}>")
            position += starts[position]
            continue
        learned = bool(example.learned[position]) and position > 0
        stop = position
        while (
            stop < end
            and stop not in starts
            and bool(example.learned[stop] and stop > 0) == learned
        ):
            stop += 1
        text = tokenizer.decode(example.ids[position:stop].tolist())
        words.append(f"[{text}]" if learned else text)
        position = stop
    return repr("".join(words) + (" ..." if end < len(example.ids) else ""))


def _shown(example: Example) -> tuple[int, int]:
    """Which tokens to show, half-open; never from the middle of an image on."""
    end = min(len(example.ids), SHOWN_TOKENS + int(example.image_tokens.sum()))
    learned = example.learned.nonzero()[0]
    if len(learned) == 0 or learned[0] < end:
        return 0, end
    first = int(learned[0])
    start = max(0, first - SHOWN_TOKENS // 2)
    for begins, count in zip(example.image_starts, example.image_tokens, strict=True):
        if begins < start < begins + count:
            start = int(begins + count)
    return start, min(len(example.ids), first + SHOWN_TOKENS // 2)
