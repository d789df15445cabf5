"""The progress line: rewritten on a terminal, seldom and plain elsewhere."""

from __future__ import annotations

import io

from vltrain.metrics.console import ConsoleSink, clock_words


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_line_says_where_training_is(make_row):
    stream = io.StringIO()
    sink = ConsoleSink(stream, steps=11, clock=Clock())
    sink.write(make_row(1, language_share_realised=0.703))
    assert stream.getvalue() == (
        "align 1/11  loss 2.500  lr 1.0e-03  |g| 0.50  300 tok/s  text 70.3%  wait 25%  left 20s\n"
    )
    sink.close()


def test_the_line_says_the_mfu_where_it_is_known(make_row):
    stream = io.StringIO()
    sink = ConsoleSink(stream, steps=11, clock=Clock())
    sink.write(make_row(1, mfu=0.4567))
    assert "  300 tok/s  mfu 45.7%  text 0.0%  " in stream.getvalue()


def test_the_line_shows_the_layer_whose_experts_are_spread_worst(make_row):
    stream = io.StringIO()
    sink = ConsoleSink(stream, steps=11, clock=Clock())
    routers = {"max_over_mean": [1.5, 3.0, 1.25], "entropy": [0.9, 0.75, 1.0]}
    sink.write(make_row(1, routers=routers))
    assert stream.getvalue().endswith("wait 25%  experts 3.00x  left 20s\n")


def test_plain_lines_come_every_ten_seconds_and_at_the_end(make_row):
    stream, clock = io.StringIO(), Clock()
    sink = ConsoleSink(stream, steps=30, clock=clock)
    for step in range(1, 31):
        clock.now = float(step)
        sink.write(make_row(step))
    sink.close()
    steps = [line.split()[1] for line in stream.getvalue().splitlines()]
    assert steps == ["1/30", "11/30", "21/30", "30/30"]
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_keeps_one_line(make_row):
    stream, clock = Terminal(), Clock()
    sink = ConsoleSink(stream, steps=3, clock=clock)
    for step in (1, 2, 3):
        clock.now += 1.0
        sink.write(make_row(step))
    sink.close()
    assert stream.getvalue().count("\r\x1b[2K") == 3
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith("\n")


def test_every_thins_the_line_and_means_stay_true(make_row):
    stream, clock = Terminal(), Clock()
    sink = ConsoleSink(stream, steps=100, every=10, clock=clock)
    for step in range(1, 11):
        clock.now += 1.0
        sink.write(make_row(step, loss=float(step)))
    shown = stream.getvalue().split("\r\x1b[2K")[1:]
    assert len(shown) == 2
    assert "10/100  loss 6.000" in shown[1]  # mean of 2 .. 10


def test_close_shows_what_was_held_back(make_row):
    stream, clock = io.StringIO(), Clock()
    sink = ConsoleSink(stream, steps=100, clock=clock)
    sink.write(make_row(1))
    sink.write(make_row(2, loss=None, grad_norm=None, skipped=True, language_share_realised=None))
    sink.write(make_row(3, loss=None, grad_norm=None, language_share_realised=None))
    sink.close()
    last = stream.getvalue().splitlines()[-1]
    assert last.startswith("align 3/100  loss -")
    assert "|g| -" in last
    assert last.endswith("  1 SKIPPED")


def test_clock_words():
    assert [clock_words(s) for s in (0.2, 59, 61, 3599, 90000)] == [
        "0s",
        "59s",
        "1m01s",
        "59m59s",
        "25h00m",
    ]
