"""Nothing is lost in silence: exact counts of every kind of damage, in every format, from prepare
to the micro-batch; the budget stops with them; memory stays flat."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from damaged_shards import EACH, FORMATS, RECORDS, write
from shard_makers import byte_encoder, byte_tokenizer, prepare

from vltrain.batch import Fault, MicroBatchPlan, PackPlan, PieceRef, StepPlan
from vltrain.data.config import DecodeMode, FaultConfig, SourceConfig
from vltrain.data.faults import FaultBudget
from vltrain.data.loader import MicroBatchDataset, StepLoader
from vltrain.data.pieces import PieceReader, PieceTable
from vltrain.data.sources import open_source
from vltrain.errors import FaultBudgetExceeded

PACKS = 20


def opened(config: SourceConfig) -> tuple[MicroBatchDataset, list[MicroBatchPlan]]:
    """What reads a source, and plans that hold each of its pieces once."""
    encoder = byte_encoder()
    source = open_source("s", config)
    table = PieceTable(source, encoder_digest=encoder.digest)
    columns = table.pieces_of_samples(0, table.num_samples)
    packs = [
        PackPlan(
            number=n,
            modality=config.modality,
            pieces=(
                PieceRef(
                    source=0,
                    piece=int(columns.piece[n]),
                    tokens=int(columns.tokens[n]),
                    supervised=int(columns.supervised[n]),
                    image_tokens=int(columns.image_tokens[n]),
                    images=int(columns.images[n]),
                ),
            ),
        )
        for n in range(table.num_pieces)
    ]
    dataset = MicroBatchDataset(
        PieceReader([source], tables=[table], encoder=encoder),
        modalities=[config.modality],
        image_token_id=byte_tokenizer().image_id,
        image_side=16,
        pad_color=(127, 127, 127),
        decode=DecodeMode.exact,
        rounding="official",
    )
    plans = [
        MicroBatchPlan(
            step=first // PACKS, micro=0, packs=tuple(packs[first : first + PACKS]), num_slots=PACKS
        )
        for first in range(0, len(packs), PACKS)
    ]
    return dataset, plans


@pytest.mark.parametrize("name", FORMATS)
def test_every_damage_is_counted(name: str, tmp_path: Path) -> None:
    config, excluded, holes = write(name, tmp_path)
    total = sum(excluded.values())
    assert total >= EACH
    with pytest.raises(FaultBudgetExceeded) as caught:
        prepare({"s": config}, grace=total - 1)
    assert f"source 's': {total} of {RECORDS} records cannot be used" in str(caught.value)
    for reason, count in excluded.items():
        assert f"'{reason}': {count}" in str(caught.value)

    (report,) = prepare({"s": config}, grace=total).sources
    assert Counter(report.excluded) == excluded
    assert report.totals[config.modality.value]["samples"] == RECORDS - total

    dataset, plans = opened(config)
    micros = [dataset[plan] for plan in plans]
    faults = [fault for micro in micros for fault in micro.faults]
    assert {fault.origin.key: fault.reason for fault in faults} == holes
    assert len(faults) == len(holes)
    assert {fault.action for fault in faults} <= {"hole"}
    read = sum(len(origins) for micro in micros for origins in micro.origins)
    assert read == RECORDS - total  # with what left a hole

    if holes:
        budget = FaultBudget(FaultConfig(grace=len(holes) - 1), ledger=tmp_path / "ledger.jsonl")
        with pytest.raises(FaultBudgetExceeded, match=rf"{len(holes)} of \d+ .*{len(holes)}\}}"):
            _count_all(budget, plans, faults)


def _count_all(budget: FaultBudget, plans: list[MicroBatchPlan], faults: list[Fault]) -> None:
    budget.count(read={"s": sum(len(plan.packs) for plan in plans)}, faults=faults[:-1])
    budget.count(read={}, faults=faults[-1:])


def resident_mib() -> dict[int, float]:
    """Resident memory of this process and its workers."""
    found = {}
    for pid in [os.getpid(), *(p.pid for p in multiprocessing.active_children() if p.pid)]:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        found[pid] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return found


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("workers", [0, 1])
def test_memory_is_flat_over_many_samples(workers: int, tmp_path: Path) -> None:
    """40,000 samples with damage among them, through a thread or a worker: neither that nor the
    trainer grows."""
    config, excluded, holes = write("img2dataset", tmp_path)
    prepare({"s": config}, grace=RECORDS)
    dataset, plans = opened(config)
    rounds = 40_000 // (RECORDS - sum(excluded.values()))

    def steps() -> Iterator[tuple[StepPlan, tuple[MicroBatchPlan, ...]]]:
        for step in range(rounds * len(plans)):
            plan = plans[step % len(plans)]
            step_plan = StepPlan(
                step=step,
                modality=None,
                packs=plan.packs,
                tokens={},
                supervised={},
                language_share_target=0.0,
                cursor_after={},
            )
            yield step_plan, (plan,)

    loader = StepLoader(steps(), dataset=dataset, workers=workers, prefetch_steps=4)
    found: dict[int, dict[int, float]] = {}
    bad = 0
    for done, (_, (micro,)) in enumerate(loader, start=1):
        bad += len(micro.faults)
        if done % len(plans) == 0:
            found[done // len(plans)] = resident_mib()
    assert bad == rounds * len(holes)
    early, late = found[rounds // 4], found[rounds - 1]
    assert len(early) == 1 + workers
    for pid, before in early.items():
        assert late[pid] - before < 8, f"process {pid}: {before:.0f} MiB, then {late[pid]:.0f}"
