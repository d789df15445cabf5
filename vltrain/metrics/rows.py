"""One row per optimizer step, and its place in ``steps.jsonl``.

In: what the loop knows after a step. Out: one JSON line (schema 1). Everything that is drawn,
printed or sent elsewhere is derived from these rows, so that a report can be made again from the
file alone. Rejected: derived columns (tokens per second, shares of a step) in the row; they would
be a second truth. MFU alone is kept: what the devices could do is in no other column, and a resumed
run may have others. A loss or norm that is not finite is written as null, because NaN is not JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vltrain.errors import DataError

SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRow:
    """What one global step did. Counts are over all ranks; ``tokens`` and ``supervised`` are
    realised (holes already left out), ``planned_tokens`` is the plan's. Modalities are "language"
    and "multimodal", counted by piece.
    """

    step: int  # 1 is the stage's first step
    time: float  # seconds since the epoch, at the step's end
    stage: str  # the stage's name
    loss: float | None  # nats per target token over the whole global step
    lr: dict[str, float]  # by part
    grad_norm: float | None  # before clipping
    modality: str | None  # of the step's packs; None where a step mixes both
    tokens: dict[str, int]
    planned_tokens: dict[str, int]
    supervised: dict[str, int]
    images: int
    packs: int
    holes: int  # records found bad while this step was read
    language_share_target: float  # of this step
    language_share_realised: float | None  # of all steps so far, in the mixture's unit
    digest: str  # of the step's global batch, hex
    chain: str  # of all steps' digests so far, hex
    seconds: float  # the whole step, waiting for data included
    data_wait_seconds: float
    skipped: bool  # True: no update was made (nothing to learn, or not finite)
    model_flops: float | None = None  # floating-point operations of the model, where counted
    rank_imbalance: float | None = None  # planned work of the busiest rank over the mean of all
    routers: dict[str, Any] | None = None  # mixture of experts, over the layers that have them:
    # max_over_mean and entropy of the experts' loads, now and then the loads
    bad_records: dict[str, int] | None = None  # of each source that has some, since the run began
    slots: int | None = None  # places that were computed: rows x padded length of all micro-batches
    mfu: float | None = None  # model_flops over what the devices could do meanwhile, 0 to 1

    def to_line(self) -> str:
        """The row as one JSON line, newline included."""
        record = {"schema": SCHEMA, **asdict(self)}
        for name in ("loss", "grad_norm"):
            if record[name] is not None and not math.isfinite(record[name]):
                record[name] = None
        if self.mfu is None:  # no key rather than a null: most devices have none for a whole run
            del record["mfu"]
        return json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n"

    @classmethod
    def from_line(cls, line: str, *, where: str) -> StepRow:
        """Inverse of ``to_line``. Raises DataError naming ``where`` for anything else."""
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: expected one JSON object, found {line[:60]!r}") from error
        schema = record.pop("schema", None) if isinstance(record, dict) else None
        if schema != SCHEMA:
            raise DataError(
                f"{where}: row has schema {schema}, this version reads schema {SCHEMA}; use the "
                "version that wrote it, or move the file away"
            )
        # Fields with a default came later: rows of before are rows.
        missing = sorted({f.name for f in fields(cls) if f.default is MISSING} - record.keys())
        unknown = sorted(record.keys() - {f.name for f in fields(cls)})
        if missing or unknown:
            raise DataError(f"{where}: row lacks {missing} and has unknown {unknown}")
        return cls(**record)

    @property
    def num_tokens(self) -> int:
        return sum(self.tokens.values())

    @property
    def num_supervised(self) -> int:
        return sum(self.supervised.values())


def read_rows(path: Path) -> list[StepRow]:
    """All whole rows of a ``steps.jsonl``, in file order; a torn last line (a run that was killed
    while it wrote) is left out. Raises DataError for a damaged row elsewhere. No file: no
    rows."""
    return [row for row, _ in read_rows_with_ends(path)]


def read_rows_with_ends(path: Path) -> list[tuple[StepRow, int]]:
    """As ``read_rows``, each row with the byte offset just after it."""
    if not path.exists():
        return []
    rows: list[tuple[StepRow, int]] = []
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            end += len(line)
            text = line.decode("utf-8", errors="replace")
            rows.append((StepRow.from_line(text, where=f"{path}:{number}"), end))
    return rows


def useful_share(rows: Sequence[StepRow]) -> float | None:
    """Real tokens over the places that were computed, of the rows that counted these; None where
    none did."""
    counted = [(row.num_tokens, row.slots) for row in rows if row.slots]
    slots = sum(slots for _, slots in counted)
    return sum(tokens for tokens, _ in counted) / slots if slots else None
