"""Held-out loss: sums over targets, not means of means; the blank control; faults counted."""

from __future__ import annotations

import pytest

from vltrain.batch import Learn
from vltrain.errors import DataError
from vltrain.evaluate.held_out import held_out_loss


def measure(subject, encoder, samples, **changes):
    settings = {"learn": None, "batch_records": 2, "blank_control": True, **changes}
    return held_out_loss(subject, samples=samples, encoder=encoder, **settings)


def test_loss_is_per_target_and_blank_costs_more(rule_subject, rule_encoder, make_caption):
    right = make_caption("1", "red", color="red")
    wrong = make_caption("2", "a much longer caption", color="green")
    found = measure(rule_subject, rule_encoder, [right, wrong])
    # Every text token and the end token are targets.
    n_right = len(rule_encoder.tokenizer.encode("red")) + 1
    n_wrong = len(rule_encoder.tokenizer.encode("a much longer caption")) + 1
    assert found.targets == n_right + n_wrong
    assert found.records == 2
    assert found.loss == pytest.approx((1.0 * n_right + 3.0 * n_wrong) / (n_right + n_wrong))
    assert found.blank_loss == pytest.approx(4.0)
    assert found.faults == 0


def test_text_has_no_blank_figure_and_is_read_in_pieces(rule_subject, rule_encoder, make_text):
    found = measure(rule_subject, rule_encoder, [make_text("1", "many words here. " * 40)])
    assert found.blank_loss is None
    assert found.loss == pytest.approx(2.0)
    whole = len(rule_encoder.tokenizer.encode(("many words here. " * 40).strip())) + 1
    # The first token of a later piece is predicted by nothing.
    assert whole - 20 < found.targets < whole


def test_batch_size_changes_nothing(rule_subject, rule_encoder, make_caption):
    samples = [make_caption(str(n), "red " * n, color="red") for n in range(1, 6)]
    one = measure(rule_subject, rule_encoder, samples, batch_records=1)
    five = measure(rule_subject, rule_encoder, samples, batch_records=5)
    assert one == five


def test_answers_only(rule_subject, rule_encoder, make_question):
    sample = make_question("1", "What color?", "red", color="red")
    found = measure(rule_subject, rule_encoder, [sample], learn=Learn.answers, blank_control=False)
    assert found.targets == len(rule_encoder.tokenizer.encode(" red")) + 1
    assert found.blank_loss is None


def test_bad_records_are_counted_and_named(rule_subject, rule_encoder, make_caption, caplog):
    samples = [
        make_caption("broken", "red", color=None),
        make_caption("long", "red " * 200, color="red"),
        make_caption("good", "red", color="red"),
    ]
    found = measure(rule_subject, rule_encoder, samples)
    assert (found.records, found.faults) == (1, 2)
    assert "colors:a.tar:broken left out: not_an_image" in caplog.text
    assert "colors:a.tar:long left out: too_long" in caplog.text


def test_nothing_usable_is_an_error(rule_subject, rule_encoder, make_caption):
    with pytest.raises(DataError, match="no usable targets: 0 records, 1 faults; check"):
        measure(rule_subject, rule_encoder, [make_caption("1", "red", color=None)])
