"""The JSONL sink: rows are there at once, and cutting makes the file agree with a checkpoint."""

from __future__ import annotations

import pytest

from vltrain.errors import DataError
from vltrain.metrics.jsonl import JsonlSink
from vltrain.metrics.rows import read_rows


def test_each_row_is_on_disk_before_close(tmp_path, make_row):
    path = tmp_path / "run" / "steps.jsonl"
    sink = JsonlSink(path)
    sink.write(make_row(1))
    assert [r.step for r in read_rows(path)] == [1]
    sink.write(make_row(2))
    sink.sync()
    assert [r.step for r in read_rows(path)] == [1, 2]
    sink.close()


def test_resume_cuts_later_rows_and_goes_on(tmp_path, make_row):
    path = tmp_path / "steps.jsonl"
    first = JsonlSink(path)
    for step in (1, 2, 3, 4):
        first.write(make_row(step, chain=f"{step:032x}"))
    first.close()
    with path.open("a") as file:
        file.write('{"schema":1,"st')  # killed while it wrote

    second = JsonlSink(path)
    last = second.cut_after(2)
    assert last is not None
    assert last.chain == f"{2:032x}"
    second.write(make_row(3, loss=9.0))
    second.close()
    assert [(r.step, r.loss) for r in read_rows(path)] == [(1, 2.5), (2, 2.5), (3, 9.0)]


def test_cut_after_zero_empties_the_file(tmp_path, make_row):
    path = tmp_path / "steps.jsonl"
    sink = JsonlSink(path)
    sink.write(make_row(1))
    assert sink.cut_after(0) is None
    assert path.read_bytes() == b""
    sink.close()


def test_cutting_does_not_touch_a_file_that_agrees(tmp_path, make_row):
    path = tmp_path / "steps.jsonl"
    sink = JsonlSink(path)
    sink.write(make_row(1))
    before = path.read_bytes()
    assert sink.cut_after(1) == make_row(1)
    assert path.read_bytes() == before
    sink.close()


def test_a_damaged_row_is_named(tmp_path, make_row):
    path = tmp_path / "steps.jsonl"
    path.write_text(make_row(1).to_line() + "garbage\n" + make_row(3).to_line())
    sink = JsonlSink(path)
    with pytest.raises(DataError, match=r"steps\.jsonl:2: expected one JSON object"):
        sink.cut_after(1)
    sink.close()
