"""The demo's steps: what Ctrl-C leaves behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


class Interrupted:
    """A process during which the user presses Ctrl-C."""

    started: list[Interrupted]

    def __init__(self, command, **_) -> None:
        self.terminated = False
        self.started.append(self)

    def wait(self) -> int:
        raise KeyboardInterrupt

    def terminate(self) -> None:
        self.terminated = True


@pytest.fixture
def quickstart(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(LAUNCH))
    import quickstart

    yield quickstart
    sys.modules.pop("quickstart")


def test_each_demo_is_its_own_experiment(quickstart: ModuleType) -> None:
    def words(name: str) -> list[tuple[str, ...]]:
        steps = quickstart.demo_steps("runs/r", seed=3, demo=quickstart.DEMOS[name])
        commands = [command for step in steps for command in step.commands]
        return [command[1:] for command in commands if "run.seed=3" in command]

    for number, command in enumerate(words("vl")):
        assert "+experiment=demo" in command
        assert not any(word.startswith("stage.trainable") for word in command)
        of_vl2 = words("vl2")[number]
        assert "+experiment=demo_vl2" in of_vl2
        # SigLIP is its only tower.
        towers = ("stage.trainable=[siglip]",) if "towers" in command else ()
        assert of_vl2[len(command) :] == towers
    assert any("towers" in command for command in words("vl"))


@pytest.mark.parametrize(("together", "started"), [(False, 1), (True, 2)])
def test_ctrl_c_ends_the_step_without_a_traceback(
    quickstart: ModuleType, monkeypatch: pytest.MonkeyPatch, together: bool, started: int
) -> None:
    Interrupted.started = []
    monkeypatch.setattr(quickstart.subprocess, "Popen", Interrupted)
    step = quickstart.Step(title="t", commands=(("a",), ("b",)), together=together)
    assert quickstart._run(step) == 130
    assert len(Interrupted.started) == started
    assert all(process.terminated for process in Interrupted.started)
