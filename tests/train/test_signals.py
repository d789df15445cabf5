"""Being asked to stop: remembered, never acted upon in the handler, and given back afterwards."""

from __future__ import annotations

import os
import signal

import pytest

from vltrain.train.signals import StopRequest


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_is_remembered_and_a_second_one_does_no_harm(name: str) -> None:
    number = signal.Signals[name]
    before = signal.getsignal(number)
    stop = StopRequest()
    try:
        with stop.listening():
            assert stop.name() is None
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.name() == name
        os.kill(os.getpid(), number)  # a launcher's, while files are closed: still taken
        assert stop.name() == name
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(number, before)


def test_without_a_signal_the_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest().listening():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
