"""Words to a config, errors to one message and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from vltrain import distributed
from vltrain.errors import ConfigError, DataError

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """launch/command_line.py, imported as the scripts beside it do."""
    monkeypatch.syspath_prepend(str(LAUNCH))
    monkeypatch.delenv("RANK", raising=False)
    import command_line

    yield command_line
    sys.modules.pop("command_line")


def fail(error: BaseException) -> None:
    raise error


def test_an_error_is_one_line_and_exit_code_2(command_line, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.with_clean_errors(lambda: fail(ConfigError("x=1: choose y")))
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: x=1: choose y\n"


def test_the_first_rank_speaks_for_all(command_line, capsys, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as ended:
        command_line.with_clean_errors(lambda: fail(ConfigError("x=1: choose y")))
    assert ended.value.code == 2
    assert capsys.readouterr().err == ""


def test_a_rank_that_fails_alone_says_so_itself(command_line, capsys, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    with pytest.raises(SystemExit):
        command_line.with_clean_errors(lambda: fail(DataError("shard.tar is gone")))
    assert capsys.readouterr().err == "rank 1: error: shard.tar is gone\n"


@pytest.mark.parametrize(("rank", "messages"), [("0", 1), ("1", 0)])
def test_ctrl_c_is_one_message(command_line, capsys, monkeypatch, rank: str, messages: int) -> None:
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as ended:
        command_line.with_clean_errors(lambda: fail(KeyboardInterrupt()))
    assert ended.value.code == 130
    said = capsys.readouterr().err
    assert said.count("continues a training run from there") == messages


def test_our_own_mistakes_keep_their_traceback(command_line) -> None:
    with pytest.raises(KeyError):
        command_line.with_clean_errors(lambda: fail(KeyError("ours")))


@pytest.mark.parametrize(
    ("words", "meant"),
    [(["stgae=2"], "stage"), (["modle=tiny", "optim.lr=1"], "model"), (["+optm=x"], "optim")],
)
def test_a_misspelt_group_is_named(command_line, words: list[str], meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {meant}=...") as error:
        command_line._refuse_words(words)
    assert "data, debug, engine, experiment, model, optim, stage" in str(error.value)


def test_a_sweep_over_stages_is_refused(command_line) -> None:
    with pytest.raises(ConfigError, match=r"stage=1,2: the stage cannot be swept.*once for each"):
        command_line._refuse_words(["-m", "stage=1,2", "+experiment=demo"])


@pytest.mark.parametrize(
    "words",
    [["stage=1", "stgae=2"], ["optim.lr=1"], ["data=x"], ["resume=never"], ["--cfg", "job"]],
)
def test_other_words_are_left_to_hydra(command_line, words: list[str]) -> None:
    command_line._refuse_words(words)


def test_help_needs_no_stage(command_line, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "stage=9", "--help"])
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", "Train one stage.\n")
    command_line.run_with_config(lambda config: fail(AssertionError("not to be run")))
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == ["Train one stage.", "", "Groups:"]
    assert "  stage=1|2|3" in said
    assert "  +debug=short" in said  # not in the defaults: has to be added
    assert "--cfg job" in said[-1]
