from __future__ import annotations

import json
from pathlib import Path

import pytest

from vltrain.batch import Fault, Origin
from vltrain.data.config import FaultConfig
from vltrain.data.faults import FaultBudget, Ledger, over_budget
from vltrain.errors import FaultBudgetExceeded


def fault(key: str, *, source: str = "s") -> Fault:
    origin = Origin(source=source, shard="x.tar", key=key)
    return Fault(origin=origin, reason="truncated", detail="cut", action="hole")


def test_ledger_rows(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "run" / "ledger.jsonl")
    ledger.append([], step=0)
    assert not ledger.path.exists()
    ledger.append([fault("a")], step=1)
    ledger.append([fault("b"), fault("c")], step=3)
    rows = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    assert rows[0] == {
        "schema": 1,
        "step": 1,
        "source": "s",
        "shard": "x.tar",
        "key": "a",
        "reason": "truncated",
        "detail": "cut",
        "action": "hole",
    }
    assert [row["key"] for row in rows] == ["a", "b", "c"]


def test_ledger_is_cut_after_a_step(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert ledger.cut_after(3) == 0
    for step in (1, 2, 3):
        ledger.append([fault(str(step))], step=step)
    with ledger.path.open("a") as stream:
        stream.write('{"step": 2, "half')
    assert ledger.cut_after(2) == 2
    assert [json.loads(line)["key"] for line in ledger.path.open()] == ["1", "2"]


def test_a_key_with_other_line_separators_is_one_row(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append([fault("a\u2028b\x85c")], step=1)
    ledger.append([fault("d")], step=2)
    assert ledger.cut_after(1) == 1
    assert json.loads(ledger.path.read_text(encoding="utf-8"))["key"] == "a\u2028b\x85c"


@pytest.mark.parametrize(
    ("bad", "read", "expected"), [(2, 1, False), (3, 30, False), (3, 29, True), (0, 0, False)]
)
def test_over_budget(bad: int, read: int, expected: bool) -> None:
    assert over_budget(bad, read=read, faults=FaultConfig(budget=0.1, grace=2)) is expected


def test_budget_counts_by_source_and_goes_on_from_its_state(tmp_path: Path) -> None:
    config, path = FaultConfig(budget=0.1, grace=2), tmp_path / "ledger.jsonl"
    first = FaultBudget(config, ledger=path)
    first.count(read={"s": 10, "t": 10}, faults=[fault("a"), fault("b")])
    first.count(read={"t": 1}, faults=[fault("x", source="t"), fault("y", source="t")])
    assert first.state() == {"read": {"s": 10, "t": 11}, "bad": {"s": 2, "t": 2}}
    second = FaultBudget(config, ledger=path, state=json.loads(json.dumps(first.state())))
    with pytest.raises(FaultBudgetExceeded) as caught:
        second.count(read={"s": 1}, faults=[fault("c")])
    message = str(caught.value)
    assert "source 's': 3 of 11 records cannot be used (27.27 %" in message
    assert "s:x.tar:c: truncated: cut" in message
    assert f"2 more in {path}" in message
    assert "raise data.faults.budget" in message
