"""Index and measure the shards of a run: python launch/prepare.py <the same words as
launch/train.py>

Writes an index and a token table beside the shards (or into a source's index_dir) for every source
of the mix and every held-out source, in parallel; what is fresh is kept, so it can be run again at
any time, after an interruption or when shards were added.
"""

from __future__ import annotations

import os
import sys

from command_line import run_with_config

from stages import policy_of
from vltrain.assemble.datapath import build_encoder, open_tokenizer, sources_to_prepare
from vltrain.data.config import SourceConfig
from vltrain.data.prepare import PrepareProgress, prepare_sources
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
        progress=_show,
    )
    print()
    print("\n".join(report.lines()))


def _show(progress: PrepareProgress) -> None:
    rate = progress.samples / max(progress.seconds, 1e-9)
    line = (
        f"prepared {progress.done_shards}/{progress.total_shards} shards, {progress.samples} "
        f"samples ({rate:.0f}/s), {progress.shard}"
    )
    end = "\r" if sys.stdout.isatty() else "\n"
    print(line.ljust(100) if end == "\r" else line, end=end, flush=True)


if __name__ == "__main__":
    run_with_config(prepare)
