"""Other readers over the same tars, one at a time in a process of its own: a JSON line of figures.

    python benchmarks/peers.py NAME FOLDER SAMPLES

Run by the benchmarks of the reader with the interpreter that ``--peers`` names, so that the peers
are installed where the user likes. A peer that is not there ends with code 9. Only the peers' own
documented way is used; what it is, each function says.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

ABSENT = 9


def webdataset_raw(folder: Path) -> Iterator[Any]:
    """Members as bytes, through a shuffle buffer of 1,000 samples; without end. (It cannot
    resume.)"""
    import webdataset as wds

    urls = sorted(str(path) for path in folder.glob("*.tar"))
    while True:
        yield from wds.WebDataset(urls, shardshuffle=False).shuffle(1000)


def energon_raw(folder: Path) -> Iterator[Any]:
    """Members as bytes, through a shuffle buffer of 1,000 samples, in its own resumable loader
    without workers. (``energon prepare`` has been run over the folder.)"""
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        WorkerConfig,
        get_savable_loader,
        get_train_dataset,
        stateless,
    )

    class Raw(DefaultTaskEncoder):
        decoder = None
        cookers = [Cooker(stateless(_as_it_is))]  # noqa: RUF012  # as its own examples

    worker = WorkerConfig(rank=0, world_size=1, num_workers=0)
    dataset = get_train_dataset(
        folder,
        batch_size=None,
        shuffle_buffer_size=1000,
        max_samples_per_sequence=100,
        worker_config=worker,
        task_encoder=Raw(),
    )
    return iter(get_savable_loader(dataset))


def litdata_raw(folder: Path) -> Iterator[Any]:
    """Its own chunks, made of the same members, shuffled, in its own resumable loader without
    workers; without end."""
    from litdata import StreamingDataLoader, StreamingDataset

    chunks = folder.parent / f"{folder.name}-litdata"
    if not chunks.is_dir():
        _litdata_chunks(folder, chunks)
    dataset = StreamingDataset(str(chunks), shuffle=True, drop_last=False)
    while True:
        yield from StreamingDataLoader(
            dataset, batch_size=32, num_workers=0, collate_fn=lambda batch: batch
        )


def _litdata_chunks(folder: Path, chunks: Path) -> None:
    import tarfile

    from litdata import optimize

    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                stream = tar.extractfile(member)
                if stream is not None:
                    samples.setdefault(key, {})[extension] = stream.read()
    optimize(
        fn=_as_it_is,
        inputs=list(samples.values()),
        output_dir=str(chunks),
        chunk_bytes="64MB",
        num_workers=1,
    )


def _as_it_is(sample: dict[str, bytes]) -> dict[str, bytes]:
    return sample


PEERS: dict[str, tuple[Callable[[Path], Iterator[Any]], int]] = {
    "webdataset": (webdataset_raw, 1),
    "energon": (energon_raw, 1),
    "litdata": (litdata_raw, 32),
}
"""Each with the samples of one item."""


def main() -> None:
    """Warm up on a tenth, then count."""
    name, folder, samples = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    make, size = PEERS[name]
    try:
        items = make(folder)
        for _ in islice(items, max(1, samples // size // 10)):
            pass
    except ImportError as error:
        print(f"{name} is not there: {error}", file=sys.stderr)
        raise SystemExit(ABSENT) from error
    begin, wall, seen = time.process_time(), time.monotonic(), 0
    for _ in islice(items, samples // size):
        seen += size
    cpu, wall = time.process_time() - begin, time.monotonic() - wall
    print(json.dumps({"samples_per_cpu_second": seen / cpu, "samples_per_second": seen / wall}))


if __name__ == "__main__":
    main()
