"""The whole loader: plan, read, decode, tokens, packs, micro-batches; beside webdataset.

    python benchmarks/reader_loader.py     (on a machine that does nothing else)

All go over the same tars (1024x768 photos with captions) with one worker process, and are measured
in CPU seconds of all their processes, start-up left out. The peers are webdataset's pipeline in a
PyTorch DataLoader: once with the published float32 transform, once with our own uint8 decode. Both
tokenise each caption; neither packs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import webdataset as wds
from matplotlib.figure import Figure
from photos import write_captions
from reference_path import PAD, SIDE, normalised
from results import arguments, report
from tables import SEQUENCE_LENGTH, encoder, prepare, source_config

from vltrain.batch import Modality, RecordKind
from vltrain.data.assign import WorkCost, assign
from vltrain.data.config import (
    BatchConfig,
    DataConfig,
    DecodeMode,
    MixtureConfig,
    PackingConfig,
)
from vltrain.data.loader import MicroBatchDataset, StepLoader
from vltrain.data.pieces import PieceReader, PieceTable
from vltrain.data.plan import Plan
from vltrain.data.recipe import Recipe
from vltrain.data.sources import open_source
from vltrain.processing.images import decode_square

SAMPLES, SHARDS, WORDS = 400, 4, 80
BATCH = 8


def main() -> None:
    options = arguments("The whole loader.")
    options.add_argument("--one", nargs=3, metavar=("NAME", "FOLDER", "SAMPLES"))
    parsed = options.parse_args()
    if parsed.one:
        name, folder, wanted = parsed.one
        print(json.dumps(run(LOADERS[name], Path(folder), samples=int(wanted))))
        return
    samples = SAMPLES // (10 if parsed.quick else 1)
    with tempfile.TemporaryDirectory() as folder:
        tars = Path(folder) / "captions"
        write_captions(tars, samples=SAMPLES, shards=SHARDS, size=(1024, 768), words=WORDS)
        prepare(tars, RecordKind.caption)
        figures = {name: per_cpu_second(name, tars, samples=samples) for name in LOADERS}
    ours = figures["vltrain"]
    report(
        "reader_loader",
        figures={"samples_per_cpu_second": figures},
        goals={
            "samples per CPU second, times webdataset's with float32 transforms": (
                ours / figures["webdataset, float32"],
                ">=",
                3.0,
            )
        },
        draw=lambda figure: draw(figure, figures),
        out=parsed.out,
    )


def per_cpu_second(name: str, tars: Path, *, samples: int) -> float:
    """Samples per CPU second once it runs."""
    command = [sys.executable, __file__, "--one", name, str(tars), str(samples)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{name} failed: {ended.stderr[-2000:]}")
    return json.loads(ended.stdout.splitlines()[-1])


def run(loader: Callable[[Path], Iterator[int]], folder: Path, *, samples: int) -> float:
    """Samples per CPU second of all processes, after the first fifth, in which workers start and
    fill their queues."""
    seen, first, begin = 0, 0, 0.0
    batches = loader(folder)
    for count in batches:
        seen += count
        if seen >= samples:
            break
        if not first and seen >= samples // 5:
            first, begin = seen, _cpu_seconds(os.getpid())
    used = _cpu_seconds(os.getpid()) - begin
    batches.close()  # type: ignore[attr-defined]
    return (seen - first) / used


def _cpu_seconds(process: int) -> float:
    """Of a process and all below it, living or ended. (Not getrusage: ours are started by a fork
    server, whose children are never ours to wait for.)"""
    parents, used = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        number = int(stat.parent.name)
        parents[number] = int(words[1])
        used[number] = sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")

    def total(number: int) -> float:
        below = [child for child, parent in parents.items() if parent == number]
        return used[number] + sum(map(total, below))

    return total(process)


def ours(folder: Path) -> Iterator[int]:
    """Samples in each step of two packs."""
    sources = {"captions": source_config(folder, RecordKind.caption)}
    opened = [open_source(name, config) for name, config in sources.items()]
    tables = [PieceTable(source, encoder_digest=encoder().digest) for source in opened]
    config = DataConfig(
        sources=sources,
        mixture=MixtureConfig(language_share=0.0),
        packing=PackingConfig(enabled=True, sequence_length=SEQUENCE_LENGTH),
        batch=BatchConfig(sequences=2, micro=2),
    )
    plan = Plan(Recipe(tables, config=config), seed=0)
    cost = WorkCost(token=1.0, token_squared=0.0, image_token=1.0)
    dataset = MicroBatchDataset(
        PieceReader(opened, tables=tables, encoder=encoder()),
        modalities=[Modality.multimodal],
        image_token_id=encoder().tokenizer.image_id,
        image_side=SIDE,
        pad_color=PAD,
        rounding="official",
        decode=DecodeMode.scaled,
    )
    steps = ((step, assign(step, world=1, micro=2, rank=0, cost=cost)) for step in plan.steps())
    for _, micros in StepLoader(steps, dataset=dataset, workers=1, prefetch_steps=2):
        yield sum(micro.num_images for micro in micros)


def peer(
    folder: Path, *, image: Callable[[Any], torch.Tensor], decode: str | None
) -> Iterator[int]:
    """Samples in each batch of webdataset's pipeline."""
    tokenizer = encoder().tokenizer
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    pipeline = wds.WebDataset(urls, shardshuffle=False).repeat().shuffle(100)
    if decode is not None:
        pipeline = pipeline.decode(decode)
    pipeline = pipeline.to_tuple("jpg", "txt").map(
        lambda pair: (image(pair[0]), tokenizer.encode(_text(pair[1])))
    )
    loader = torch.utils.data.DataLoader(
        pipeline, batch_size=BATCH, num_workers=1, collate_fn=_collated
    )
    for images, _ in loader:
        yield len(images)


def _text(found: str | bytes) -> str:
    return found.decode() if isinstance(found, bytes) else found


def _collated(samples: list[tuple[torch.Tensor, list[int]]]) -> tuple[torch.Tensor, list]:
    return torch.stack([image for image, _ in samples]), [ids for _, ids in samples]


def _float_square(image: Any) -> torch.Tensor:
    return torch.from_numpy(normalised(image.convert("RGB")))


def _our_square(data: bytes) -> torch.Tensor:
    square = decode_square(data, side=SIDE, pad_color=PAD, rounding="official", mode="scaled")
    return torch.from_numpy(square)


LOADERS: dict[str, Callable[[Path], Iterator[int]]] = {
    "vltrain": ours,
    "webdataset, float32": lambda folder: peer(folder, image=_float_square, decode="pil"),
    "webdataset, our decode": lambda folder: peer(folder, image=_our_square, decode=None),
}


def draw(figure: Figure, figures: dict[str, float]) -> None:
    axes = figure.subplots()
    axes.bar(list(figures), list(figures.values()))
    axes.set_ylabel("samples per CPU second")


if __name__ == "__main__":
    main()
