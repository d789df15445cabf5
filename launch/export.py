"""Export a run for stock transformers: python launch/export.py RUN DIRECTORY [key=value ...]

RUN is a run directory or one of its checkpoints. DIRECTORY then loads with
AutoModelForImageTextToText and AutoProcessor. Needs no GPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from command_line import add_overrides, with_clean_errors

from vltrain.assemble.datapath import tokenizer_directory
from vltrain.assemble.inference import load_run
from vltrain.errors import CheckpointError
from vltrain.models.export import export_transformers


def main() -> None:
    """Load the run, write the directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("directory", type=Path, help="where to write; must not exist or be empty")
    add_overrides(parser)
    words = parser.parse_intermixed_args()
    if words.directory.exists() and any(words.directory.iterdir()):
        raise CheckpointError(f"{words.directory} is not empty; give a new directory")
    run = load_run(words.run, overrides=words.overrides)
    tokenizer = run.encoder.tokenizer
    export_transformers(
        words.directory,
        config=run.config.model,
        state=dict(run.built.named_parameters()),
        tokenizer_directory=tokenizer_directory(run.config),
        bos_token=tokenizer.decode([tokenizer.bos_id]),
        eos_token=tokenizer.decode([tokenizer.eos_id]),
    )
    print(f"{words.directory}: exported step {run.checkpoint.manifest.step} of {run.directory}")


if __name__ == "__main__":
    with_clean_errors(main)
