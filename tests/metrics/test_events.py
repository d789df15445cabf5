from __future__ import annotations

import json
from pathlib import Path

from vltrain.metrics.events import EventLog


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
