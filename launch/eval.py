"""Evaluate a run on its held-out data: python launch/eval.py RUN [key=value ...]

RUN is a run directory or one of its checkpoints. Every visual figure is repeated with the pictures
blanked. Writes results.json beside the run's rows (of a checkpoint that was copied away from its
run, into the copy) and prints the table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from command_line import add_overrides, with_clean_errors

from vltrain.assemble.inference import load_run
from vltrain.data.prepare import prepare_sources
from vltrain.data.remote import RemoteStore
from vltrain.evaluate.results import write_point
from vltrain.evaluate.subject import subject_of
from vltrain.evaluate.suite import evaluate_model
from vltrain.evaluate.table import terminal_table
from vltrain.logs import setup_logging


def main() -> None:
    """Load, measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run directory or one of its checkpoints")
    add_overrides(parser)
    words = parser.parse_args()
    setup_logging(rank=0)
    run = load_run(words.run, overrides=words.overrides)
    remote = RemoteStore(run.config.data.remote)
    prepare_sources(
        run.config.data.held_out,
        encoder_for=lambda source: run.encoder,
        workers=0,
        faults=run.config.data.faults,
        remote=remote,
    )
    point = evaluate_model(
        subject_of(run.built, end_id=run.encoder.tokenizer.eos_id),
        sources=run.config.data.held_out,
        encoder=run.encoder,
        config=run.config.evaluate,
        stage=run.config.stage.name,
        step=run.checkpoint.manifest.step,
        model=str(run.checkpoint.directory),
        remote=remote,
    )
    write_point(run.directory, point=point)
    print(terminal_table([point]))


if __name__ == "__main__":
    with_clean_errors(main)
