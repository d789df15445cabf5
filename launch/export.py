"""Export a run for other software: python launch/export.py RUN [DIRECTORY] [key=value ...]

RUN is a run directory or one of its checkpoints; DIRECTORY is where to write, by default
RUN/exported/FORMAT-step-N. With --format transformers (the default) DIRECTORY
loads with AutoModelForImageTextToText and AutoProcessor; with --format deepseek_vl it has the names
and config of the original release, and for a DeepSeek-VL2 with --format deepseek_vl2. Needs no GPU,
and memory for one tensor at a time.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch
from command_line import add_overrides, with_clean_errors

from vltrain.assemble.datapath import tokenizer_directory
from vltrain.assemble.exporting import RunWeights
from vltrain.assemble.inference import FoundRun, find_run
from vltrain.assemble.model_card import model_card
from vltrain.errors import CheckpointError
from vltrain.evaluate.results import Point, read_points
from vltrain.logs import setup_logging
from vltrain.models.export import ExportFormat, export_model, refuse_unfit
from vltrain.models.export_tokens import ExportTokens

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def main() -> None:
    """Find the run, write the directory."""
    words = _arguments()
    setup_logging(rank=0)
    run = find_run(words.run, overrides=words.overrides)
    kind = ExportFormat(words.format)
    refuse_unfit(run.config.model, kind=kind)
    directory = _target(run, kind) if words.directory is None else Path(words.directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise CheckpointError(f"{directory} is not empty or no folder; give a new directory")
    neutral = export_model(
        directory,
        kind=kind,
        config=run.config.model,
        source=RunWeights(run),
        tokens=_tokens(run),
        dtype=getattr(torch, words.dtype),
        shard_bytes=words.shard_size,
    )
    card = model_card(
        run.checkpoint.manifest,
        config=run.config.model,
        kind=kind,
        points=_points(run),
        neutral=neutral,
    )
    (directory / "README.md").write_text(card, encoding="utf-8")
    print(f"{directory}: exported step {run.checkpoint.manifest.step} of {run.directory}")


def _target(run: FoundRun, kind: ExportFormat) -> Path:
    """Where a format of a checkpoint is written unless something else is asked for."""
    return run.directory / "exported" / f"{kind.value}-step-{run.checkpoint.manifest.step}"


def _tokens(run: FoundRun) -> ExportTokens:
    tokenizer = run.encoder.tokenizer
    return ExportTokens(
        directory=tokenizer_directory(run.config),
        bos_token=tokenizer.decode([tokenizer.bos_id]),
        bos_id=tokenizer.bos_id,
        eos_token=tokenizer.decode([tokenizer.eos_id]),
        eos_id=tokenizer.eos_id,
        image_token=run.config.model.image_token,
        max_length=run.config.model.language.max_positions,
        system_prompt=run.config.stage.system_prompt or "",
    )


def _points(run: FoundRun) -> list[Point]:
    """Evaluations of this very checkpoint."""
    manifest = run.checkpoint.manifest
    return [
        point
        for point in read_points(run.directory)
        if (point.stage, point.step) == (manifest.stage.get("name"), manifest.step)
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "directory", nargs="?", help="where to write; must not exist or be empty (see above)"
    )
    parser.add_argument(
        "--format", choices=[kind.value for kind in ExportFormat], default="transformers"
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="of the written tensors; float32 loses nothing",
    )
    parser.add_argument("--shard-size", type=_bytes, default="5GB", help="largest file, e.g. 500MB")
    add_overrides(parser)
    words = parser.parse_intermixed_args()
    if words.directory is not None and "=" in words.directory:
        words.overrides.insert(0, words.directory)
        words.directory = None
    return words


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+)(KB|MB|GB)", text)
    if found is None or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size such as 500MB or 5GB")
    return int(found[1]) * UNITS[found[2]]


if __name__ == "__main__":
    with_clean_errors(main)
