"""Raw samples per second of CPU: shuffled, resumable, every member's bytes, nothing decoded.

    python benchmarks/reader_raw.py --peers PYTHON     (on a machine that does nothing else)

PYTHON is an interpreter with the peers (pip install webdataset litdata megatron-energon in an
environment of its own); a peer that is not there is skipped, and said so. All read the same 4,000
samples (640x480 photo, JSON, caption), which the page cache holds, again and again in one process,
and give key and members of each. That ours are, sample for sample, the bytes that stock webdataset
gives is checked before anything is timed. Readers take turns for five rounds; of each, the best
window of 2,000 samples counts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import webdataset as wds
import xxhash
from matplotlib.figure import Figure
from peers import ABSENT, EXTENSIONS, PEERS, timed
from photos import write_captions
from results import arguments, report
from tables import prepared

from vltrain.batch import RecordKind
from vltrain.data.config import RatioUnit
from vltrain.data.order import SourceStream
from vltrain.data.pieces import PieceTable
from vltrain.data.reader import ShardReader
from vltrain.data.sources import Source

SAMPLES, SHARDS, ROUNDS = 4000, 8, 5
AT_A_TIME = 1024
GOALS = {"webdataset": 10.0, "energon": 30.0, "litdata": 1.3}


def main() -> None:
    options = arguments("Raw reading.")
    options.add_argument("--peers", default=sys.executable, help="interpreter with the peers")
    parsed = options.parse_args()
    samples = SAMPLES // 10 if parsed.quick else SAMPLES
    with tempfile.TemporaryDirectory() as folder:
        tars = Path(folder) / "tars"
        size = write_captions(tars, samples=samples, shards=SHARDS, size=(640, 480), words=20)
        source, table = prepared(tars, RecordKind.caption)
        check_bytes(tars, source, table)
        figures: dict[str, dict[str, float]] = {}
        for turn in range(ROUNDS):
            _keep_best(figures, "vltrain", ours(source, table, samples=2 * samples))
            for name in PEERS if turn == 0 else set(figures) & set(PEERS):
                found = _peer(name, parsed.peers, tars, samples=2 * samples)
                if found is None:
                    print(f"{name}: skipped, it is not installed for {parsed.peers}")
                else:
                    _keep_best(figures, name, found)
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
    """Key and every member of every sample, in the order of the plan's own stream."""
    raw = _raw(source, table)
    for _, members in islice(raw, samples // 10):
        assert set(members) == set(EXTENSIONS)
    return timed(raw, size=1, samples=samples)


def _raw(source: Source, table: PieceTable) -> Iterator[tuple[str, dict[str, memoryview]]]:
    stream = SourceStream(table, seed=0, block_samples=256, lanes=128, unit=RatioUnit.samples)
    reader, position = ShardReader(source), 0
    while True:
        for stretch, rows in stream.read(position, AT_A_TIME):
            yield from reader.read_records(*table.locate_samples(stretch.piece[rows]))
        position += AT_A_TIME  # with what was taken of these, all that a restart needs


def check_bytes(tars: Path, source: Source, table: PieceTable) -> None:
    """One epoch of ours holds each sample once, with the bytes that stock webdataset reads."""
    urls = sorted(str(path) for path in tars.glob("*.tar"))
    theirs = {s["__key__"]: _digest(s) for s in wds.WebDataset(urls, shardshuffle=False)}
    mine = [(key, _digest(found)) for key, found in islice(_raw(source, table), table.num_samples)]
    assert len(mine) == len(theirs)
    assert dict(mine) == theirs
    assert [key for key, _ in mine] != list(theirs), "not shuffled"


def _digest(sample: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(b"".join(bytes(sample[name]) for name in EXTENSIONS))


def _keep_best(figures: dict[str, dict[str, float]], name: str, found: dict[str, float]) -> None:
    if found["samples_per_cpu_second"] > figures.get(name, found)["samples_per_cpu_second"]:
        figures[name] = found
    figures.setdefault(name, found)


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
