"""The command that turns ledgers into lists."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launch" / "exclude_records.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_words_for_the_next_prepare(tmp_path: Path) -> None:
    row = {"schema": 1, "step": 3, "source": "web", "shard": "a.tar", "key": "7", "reason": "x"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ledger.jsonl").write_text(json.dumps(row) + "\n")
    result = run(str(tmp_path / "run"), "--out", str(tmp_path / "lists"))
    assert result.returncode == 0, result.stderr
    path = tmp_path / "lists" / "web.jsonl"
    assert f"1 records of web: data.sources.web.exclude={path}" in result.stdout
    assert json.loads(path.read_text())["key"] == "7"
    spaced = run(str(tmp_path / "run"), "--out", str(tmp_path / "my lists"))
    assert f"'data.sources.web.exclude={tmp_path}/my lists/web.jsonl'" in spaced.stdout


def test_nothing_to_do(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_text("")
    result = run(str(tmp_path / "ledger.jsonl"), "--out", str(tmp_path / "lists"))
    assert result.returncode == 2
    assert "no record is listed in" in result.stderr
    result = run(str(tmp_path / "nowhere"), "--out", str(tmp_path / "lists"))
    assert "the ledger" in result.stderr
    assert "cannot be read" in result.stderr
