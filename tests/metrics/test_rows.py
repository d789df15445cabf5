"""steps.jsonl rows: what is written is read back, and what is not a row is refused by place."""

from __future__ import annotations

import json
import math

import pytest

from vltrain.errors import DataError
from vltrain.metrics.rows import StepRow, read_rows, useful_share


def test_a_row_comes_back_as_it_went(make_row):
    row = make_row(
        7, lr={"adaptor": 1e-3, "language": 1e-4}, model_flops=1.5e12, rank_imbalance=1.02
    )
    assert StepRow.from_line(row.to_line(), where="x:1") == row
    row = make_row(8, mfu=0.25, slots=700)
    assert StepRow.from_line(row.to_line(), where="x:1") == row


def test_the_schema_of_a_line_is_fixed(make_row):
    record = json.loads(make_row(1).to_line())
    assert record["schema"] == 1
    assert list(record) == [
        "schema",
        "step",
        "time",
        "stage",
        "loss",
        "lr",
        "grad_norm",
        "modality",
        "tokens",
        "planned_tokens",
        "supervised",
        "images",
        "packs",
        "holes",
        "language_share_target",
        "language_share_realised",
        "digest",
        "chain",
        "seconds",
        "data_wait_seconds",
        "skipped",
        "model_flops",
        "rank_imbalance",
        "routers",
        "bad_records",
        "slots",
    ]
    assert json.loads(make_row(1, mfu=0.5).to_line()).keys() - record.keys() == {"mfu"}


def test_a_row_of_before_a_field_was_added_is_read(make_row):
    record = json.loads(make_row(1, model_flops=2.0, rank_imbalance=1.5).to_line())
    del record["model_flops"], record["rank_imbalance"]
    assert StepRow.from_line(json.dumps(record), where="x:1") == make_row(1)


def test_the_useful_share_is_of_the_rows_that_counted_places(make_row):
    counted = [make_row(1, slots=800), make_row(2, slots=1600)]  # 600 tokens each
    assert useful_share([*counted, make_row(3)]) == 0.5
    assert useful_share([make_row(3)]) is None


def test_a_loss_that_is_not_finite_becomes_null(make_row):
    record = json.loads(make_row(1, loss=math.nan, grad_norm=math.inf, skipped=True).to_line())
    assert record["loss"] is None
    assert record["grad_norm"] is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"schema": 2}', "row has schema 2, this version reads schema 1"),
        ("[1]", "row has schema None"),
        ("{step", "expected one JSON object"),
        ('{"schema": 1, "step": 3, "extra": 1}', "unknown ['extra']"),
    ],
)
def test_what_is_not_a_row_is_refused_with_its_place(line, words):
    with pytest.raises(DataError) as caught:
        StepRow.from_line(line, where="runs/a/steps.jsonl:4")
    assert "runs/a/steps.jsonl:4" in str(caught.value)
    assert words in str(caught.value)


def test_reading_leaves_out_a_torn_last_line(tmp_path, make_row):
    path = tmp_path / "steps.jsonl"
    path.write_text(make_row(1).to_line() + make_row(2).to_line()[:40])
    assert [r.step for r in read_rows(path)] == [1]


def test_no_file_has_no_rows(tmp_path):
    assert read_rows(tmp_path / "steps.jsonl") == []
