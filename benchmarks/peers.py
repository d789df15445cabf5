"""Other readers over the same tars, one at a time in a process of its own: a JSON line of figures.

    python benchmarks/peers.py NAME FOLDER SAMPLES

Run by the benchmarks of the reader with the interpreter that ``--peers`` names, so that the peers
are installed where the user likes. A peer that is not there ends with code 9. Only the peers' own
documented way is used; what it is, each function says.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

ABSENT = 9
EXTENSIONS = ("jpg", "json", "txt")
WINDOW = 2000
"""Samples that are timed together."""


def webdataset_raw(folder: Path) -> Iterator[Any]:
    """Members as bytes, shards shuffled, through a shuffle buffer of 1,000 samples; without end.
    (It cannot resume.)"""
    import webdataset as wds

    urls = sorted(str(path) for path in folder.glob("*.tar"))
    return iter(wds.WebDataset(urls, shardshuffle=100).shuffle(1000).repeat())


def energon_raw(folder: Path) -> Iterator[Any]:
    """Members as bytes, through a shuffle buffer of 1,000 samples, in its own resumable loader
    without workers, over the index that its ``energon prepare`` makes."""
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        WorkerConfig,
        get_savable_loader,
        get_train_dataset,
        stateless,
    )

    if not (folder / ".nv-meta").is_dir():
        _energon_prepare(folder)

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


def _energon_prepare(folder: Path) -> None:
    command = [sys.executable, "-m", "megatron.energon.cli.main", "prepare", "--non-interactive"]
    command += ["--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset", str(folder)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"energon prepare failed: {ended.stdout[-1000:]}{ended.stderr[-2000:]}")


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
                    sample = samples.setdefault(key, {"__key__": key.encode()})
                    sample[extension] = stream.read()
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


def _check(samples: Sequence[Any]) -> None:
    """Every sample has its key and the bytes of its members."""
    for sample in samples:
        assert sample["__key__"], sample.keys()
        assert all(isinstance(sample[name], bytes) for name in EXTENSIONS), sample.keys()


def timed(items: Iterator[Any], *, size: int, samples: int) -> dict[str, float]:
    """Samples per second, the best of some windows of equal length. size: samples of one item."""
    found = []
    window = min(WINDOW, samples) // size
    for _ in range(max(1, samples // WINDOW)):
        begin, wall = time.process_time(), time.monotonic()
        for _ in islice(items, window):
            pass
        cpu, wall = time.process_time() - begin, time.monotonic() - wall
        found.append((window * size / cpu, window * size / wall))
    best = max(found)
    return {"samples_per_cpu_second": best[0], "samples_per_second": best[1]}


def main() -> None:
    """Warm up on a tenth, then count."""
    name, folder, samples = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    make, size = PEERS[name]
    try:
        items = make(folder)
        for item in islice(items, max(1, samples // size // 10)):
            _check(item if size > 1 else [item])
    except ImportError as error:
        print(f"{name} is not there: {error}", file=sys.stderr)
        raise SystemExit(ABSENT) from error
    print(json.dumps(timed(items, size=size, samples=samples)))


if __name__ == "__main__":
    main()
