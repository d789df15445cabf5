from __future__ import annotations

import json
from pathlib import Path

from vltrain.metrics.events import EventLog, last_step_of


def test_events_are_rows_and_those_after_a_checkpoint_are_cut(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.cut_after(3)
    assert not log.path.exists()
    for step in (2, 4, 5):
        log.append("loss_spike", step=step, detail=f"at\u2028 {step}")
    with log.path.open("a") as stream:
        stream.write('{"step": 1, "torn')
    log.cut_after(4)
    rows = [json.loads(line) for line in log.path.open(encoding="utf-8")]
    assert [(r["schema"], r["step"], r["event"], r["detail"]) for r in rows] == [
        (1, 2, "loss_spike", "at\u2028 2"),
        (1, 4, "loss_spike", "at\u2028 4"),
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["events.jsonl"]


def test_the_last_of_an_event(tmp_path):
    path = tmp_path / "events.jsonl"
    assert last_step_of(path, event="other_data") == 0
    log = EventLog(path)
    log.append("other_data", step=6, detail="")
    log.append("other_data", step=9, detail="at\u2028 9")
    log.append("stopped", step=12, detail="")
    with path.open("a") as torn:
        torn.write('{"schema": 1, "step": 20, "event": "other_d')
    assert last_step_of(path, event="other_data") == 9
