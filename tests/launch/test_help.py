"""Every script says how it is used where it is asked, and refuses an option that it does not
have."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
WORDS = {
    "ask": ("run", "picture.png", "what?"),
    "eval": ("run",),
    "exclude_records": ("run", "--out", "folder"),
    "export": ("run",),
    "inspect_data": ("lint",),
    "make_data": ("demo", "folder"),
    "place_tokens": ("source", "folder"),
    "prepare": ("stage=1",),
    "propose_source": ("folder",),
    "quickstart": (),
    "report": ("run",),
    "train": ("stage=1",),
    "warm_start": ("tokenizer", "stage=2"),
}
"""What makes each a whole command, but for an option that is not there."""


def run(name: str, *words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit code of the script."""
    monkeypatch.syspath_prepend(str(LAUNCH))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    monkeypatch.delenv("RANK", raising=False)
    try:
        runpy.run_path(str(LAUNCH / f"{name}.py"), run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_all_scripts_are_here() -> None:
    assert WORDS.keys() == {path.stem for path in LAUNCH.glob("*.py")} - {"command_line"}


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("asked", ["--help", "-h"])
def test_help_is_usage_and_exit_code_0(name: str, asked: str, monkeypatch, capsys) -> None:
    assert run(name, asked, monkeypatch=monkeypatch) == 0
    said = capsys.readouterr()
    assert f"{name}.py" in said.out
    assert said.err == ""


@pytest.mark.parametrize("name", WORDS)
def test_an_option_that_is_not_there_is_named(name: str, monkeypatch, capsys) -> None:
    assert run(name, *WORDS[name], "--no-such-option", monkeypatch=monkeypatch) == 2
    assert "unrecognized arguments: --no-such-option" in capsys.readouterr().err
