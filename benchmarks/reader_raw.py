"""Raw samples per second of CPU: shuffled, resumable, every member's bytes, nothing decoded.

    python benchmarks/reader_raw.py --peers PYTHON     (on a machine that does nothing else)

PYTHON is an interpreter with the peers (pip install webdataset litdata megatron-energon in an
environment of its own); a peer that is not there is skipped, and said so. All read the same 4,000
samples (640x480 photo, JSON, caption), which the page cache holds, again and again in one process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from peers import ABSENT, PEERS
from photos import write_captions
from results import arguments, report
from tables import prepared

from vltrain.batch import RecordKind
from vltrain.data.config import RatioUnit
from vltrain.data.order import SourceStream
from vltrain.data.pieces import PieceTable
from vltrain.data.reader import ShardReader
from vltrain.data.sources import Source

SAMPLES, SHARDS = 4000, 8
GOALS = {"webdataset": 10.0, "energon": 30.0, "litdata": 1.3}


def main() -> None:
    options = arguments("Raw reading.")
    options.add_argument("--peers", default=sys.executable, help="interpreter with the peers")
    parsed = options.parse_args()
    samples = SAMPLES // 10 if parsed.quick else SAMPLES
    with tempfile.TemporaryDirectory() as folder:
        tars = Path(folder) / "tars"
        size = write_captions(tars, samples=samples, shards=SHARDS, size=(640, 480), words=20)
        _prepare_energon(tars, parsed.peers)
        figures = {"vltrain": ours(*prepared(tars, RecordKind.caption), samples=10 * samples)}
        for name in PEERS:
            found = _peer(name, parsed.peers, tars, samples=2 * samples)
            if found is None:
                print(f"{name}: skipped, it is not installed for {parsed.peers}")
            else:
                figures[name] = found
    mine = figures["vltrain"]["samples_per_cpu_second"]
    report(
        "reader_raw",
        figures={"bytes_per_sample": size / samples, "readers": figures},
        goals={
            f"samples per CPU second, times {name}'s": (
                mine / figures[name]["samples_per_cpu_second"],
                ">=",
                goal,
            )
            for name, goal in GOALS.items()
            if name in figures
        },
        draw=lambda figure: draw(figure, figures),
        out=parsed.out,
    )


def ours(source: Source, table: PieceTable, *, samples: int) -> dict[str, float]:
    """Every member of every sample, in the order of the plan's own stream."""
    raw = _raw(source, table)
    for _ in zip(range(samples // 10), raw, strict=False):
        pass
    begin, wall, read = time.process_time(), time.monotonic(), 0
    for _, members in zip(range(samples), raw, strict=False):
        read += len(members)
    cpu, wall = time.process_time() - begin, time.monotonic() - wall
    assert read == 3 * samples
    return {"samples_per_cpu_second": samples / cpu, "samples_per_second": samples / wall}


def _raw(source: Source, table: PieceTable) -> Iterator[dict[str, memoryview]]:
    stream = SourceStream(table, seed=0, block_samples=256, lanes=128, unit=RatioUnit.samples)
    reader, position = ShardReader(source), 0
    while True:
        for stretch, rows in stream.read(position, 128):
            for piece in stretch.piece[rows].tolist():
                shard, row, _, _ = table.locate(piece)
                yield reader.read_record(shard, row)
        position += 128  # all that a restart needs


def _prepare_energon(tars: Path, python: str) -> None:
    """Its own index, where it is installed."""
    command = [str(Path(python).with_name("energon")), "prepare", "--non-interactive"]
    command += ["--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset", str(tars)]
    if Path(command[0]).exists():
        subprocess.run(command, check=True, capture_output=True)


def _peer(name: str, python: str, tars: Path, *, samples: int) -> dict[str, float] | None:
    peers = Path(__file__).with_name("peers.py")
    command = [python, str(peers), name, str(tars), str(samples)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    if ended.returncode == ABSENT:
        return None
    if ended.returncode:
        raise SystemExit(f"{name} failed: {ended.stderr[-2000:]}")
    return json.loads(ended.stdout.splitlines()[-1])


def draw(figure: Figure, readers: dict[str, Any]) -> None:
    axes = figure.subplots()
    names = list(readers)
    axes.bar(names, [readers[name]["samples_per_cpu_second"] for name in names])
    axes.set_yscale("log")
    axes.set_ylabel("samples per CPU second")


if __name__ == "__main__":
    main()
