"""Index and measure the shards of a run: python launch/prepare.py <the same words as
launch/train.py>

Writes an index and a token table beside the shards (or into a source's index_dir) for every source
of the mix and every held-out source, in parallel; what is fresh is kept, so it can be run again at
any time, after an interruption or when shards were added. Beside the token tables lie the report of
each source (report-NAME.json) and its chart (report-NAME.png).
"""

from __future__ import annotations

import os
import sys

from command_line import run_with_config

from stages import policy_of
from vltrain.assemble.datapath import build_encoder, open_tokenizer, sources_to_prepare
from vltrain.data.config import SourceConfig
from vltrain.data.prepare import PrepareProgress, prepare_sources
from vltrain.data.remote import RemoteStore
from vltrain.data.reportchart import draw_report
from vltrain.logs import setup_logging
from vltrain.processing.encode import Encoder
from vltrain.runconfig import RunConfig


def prepare(config: RunConfig) -> None:
    """Prepare everything that the run will open."""
    setup_logging(rank=0)
    policy_of(config.stage.number).check(config)
    encoder = build_encoder(config, open_tokenizer(config))

    def encoder_for(source: SourceConfig) -> Encoder:
        return encoder

    report = prepare_sources(
        sources_to_prepare(config),
        encoder_for=encoder_for,
        workers=min(os.cpu_count() or 1, 16),
        faults=config.data.faults,
        remote=RemoteStore(config.data.remote),
        progress=_Bar().show,
        draw=draw_report,
    )
    print()
    print("\n".join(report.lines()))


class _Bar:
    """How far it is: redrawn in place on a terminal, a line every few seconds elsewhere."""

    WIDTH = 24
    LINE_SECONDS = 5.0

    def __init__(self) -> None:
        self._last = -self.LINE_SECONDS

    def show(self, progress: PrepareProgress) -> None:
        done = progress.done_shards == progress.total_shards
        terminal = sys.stdout.isatty()
        if not (terminal or done or progress.seconds - self._last >= self.LINE_SECONDS):
            return
        self._last = progress.seconds
        share = progress.done_shards / progress.total_shards
        size = ""
        if progress.total_bytes:
            share = progress.done_bytes / progress.total_bytes
            size = f"{progress.done_bytes / 1e6:,.0f} of {progress.total_bytes / 1e6:,.0f} MB, "
        filled = round(self.WIDTH * share)
        left = progress.seconds * (1 - share) / share if share else 0.0
        line = (
            f"[{'#' * filled}{'.' * (self.WIDTH - filled)}] {progress.done_shards}/"
            f"{progress.total_shards} shards, {size}{progress.samples:,} samples "
            f"({progress.samples / max(progress.seconds, 1e-9):,.0f}/s), {left:.0f} s left"
        )
        print(line.ljust(110) if terminal else line, end="\r" if terminal else "\n", flush=True)


if __name__ == "__main__":
    run_with_config(prepare)
