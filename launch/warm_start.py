"""The demo's warm start: python launch/warm_start.py tokenizer|language|towers <demo's words>

A real run starts from published checkpoints of SAM, SigLIP and the language model. None can be had
offline, so this trains tiny ones for about two minutes and saves them in the same published
layouts, to be loaded by the ordinary path. The language model reads plain text, part of it lines
that say the same words twice; of emoji, drawn shapes and printed signs SigLIP learns which words
their captions hold, and SAM to draw them again.
Neither sees a question, an answer or a held-out image.
"""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import torch
from command_line import run_with_config, with_clean_errors

from vltrain.assemble.datapath import (
    build_encoder,
    open_data,
    open_tokenizer,
    sources_to_prepare,
    step_loader,
)
from vltrain.batch import MicroBatch
from vltrain.data.layout import find_shards
from vltrain.data.prepare import prepare_sources
from vltrain.errors import ConfigError
from vltrain.logs import setup_logging
from vltrain.models.build import build_model
from vltrain.models.export_part import export_part
from vltrain.processing.train_tokenizer import train_bpe
from vltrain.runconfig import RunConfig
from vltrain.train.warm_start import NextToken, TowersApart, warm_up

NOTE = (
    "The stages start from a warm start made on this machine (launch/warm_start.py), standing for "
    "published checkpoints of {parts}: tiny ones, trained on plain "
    "text (documentation, and short lines that say the same words twice) and on captions of "
    "emoji, drawn shapes and printed signs. It saw no question, no answer and no held-out image."
)
OBJECTIVES = {"language": NextToken, "towers": TowersApart}
# No questions or answers, as everywhere in the warm start; the drawn shapes' captions make colours
# and forms whole words of the vocabulary, as they are in any published one.
TOKENIZER_TEXTS = (
    "stdlib_text",
    "emoji_caption",
    "digits_caption",
    "ocr_lines",
    "synthetic_shapes",
)


def make_tokenizer(config: RunConfig) -> None:
    """A small byte-level BPE over the training text, with the special tokens' ids of the demo
    model."""
    directory = Path(config.model.tokenizer or "")
    vocabulary = config.model.language.vocab_size
    train_bpe(
        _texts(),
        vocab_size=vocabulary,
        directory=directory,
        image_token=config.model.image_token,
        template=config.stage.template,
    )
    notes = Path(config.run.root) / "notes.txt"
    towers = "SigLIP" if config.model.sam is None else "SAM, SigLIP"
    note = NOTE.format(parts=f"{towers} and the language model")
    notes.write_text(note + "\n", encoding="utf-8")
    print(f"tokenizer of {vocabulary} tokens in {directory}")


def _texts() -> Iterator[str]:
    for name in TOKENIZER_TEXTS:
        for shard in find_shards(name, f"data/demo/{name}/train"):
            with tarfile.open(shard) as tar:
                for member in tar:
                    stream = tar.extractfile(member)
                    if stream is None or not member.name.endswith((".txt", ".json")):
                        continue
                    text = stream.read().decode("utf-8")
                    if member.name.endswith(".json"):
                        text = "\n".join(m["content"] for m in json.loads(text)["messages"])
                    yield text


def train_part(what: str, config: RunConfig) -> None:
    """Train what the config says from scratch and save it, each part in its published layout."""
    setup_logging(rank=0)
    torch.manual_seed(config.run.seed)
    encoder = build_encoder(config, open_tokenizer(config))
    prepare_sources(
        sources_to_prepare(config),
        encoder_for=lambda source: encoder,
        workers=0,
        faults=config.data.faults,
    )
    loader = step_loader(config, open_data(config), cursor=None, rank=0, world=1)
    model = build_model(
        config.model,
        trainable=config.stage.trainable,
        freeze=(),
        dtype=torch.float32,
        frozen_dtype=torch.float32,
        device="cpu",
        seed=config.run.seed,
    )
    every = max(1, config.optim.steps // 10)
    seen: list[float] = []

    def report(step: int, loss: float) -> None:
        seen.append(loss)
        if step % every == 0:
            mean = sum(seen[-every:]) / every
            print(
                f"warm start, {what}: step {step}/{config.optim.steps}, loss {mean:.2f}", flush=True
            )

    batches: Iterator[MicroBatch] = (batch for _, micros in loader for batch in micros)
    warm_up(
        OBJECTIVES[what](model),
        batches=batches,
        steps=config.optim.steps,
        lr=config.optim.lr,
        report=report,
    )
    for part in config.stage.trainable:
        directory = config.run_dir / part
        export_part(directory, config=config.model, part=part, state=model.part_state(part))
        if part == "language" and config.model.tokenizer:
            _copy_tokenizer(Path(config.model.tokenizer), directory)


def _copy_tokenizer(source: Path, target: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if source.resolve() != target.resolve():
            shutil.copyfile(source / name, target / name)


def main() -> None:
    """The first word says what to make; the rest is the demo's config."""
    what = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if what == "tokenizer":
        sys.argv.append("data=demo_warm_language")
        run_with_config(make_tokenizer)
    elif what in OBJECTIVES:
        sys.argv.append(f"data=demo_warm_{what}")
        run_with_config(lambda config: train_part(what, config))
    elif what in ("-h", "--help"):
        print((__doc__ or "").strip())
    else:
        with_clean_errors(lambda: _refuse(what))


def _refuse(what: str) -> None:
    raise ConfigError(f"warm_start.py {what!r}: choose tokenizer, {' or '.join(OBJECTIVES)}")


if __name__ == "__main__":
    main()
