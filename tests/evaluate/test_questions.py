"""Question answering: exact matches by group, the same words asked blind."""

from __future__ import annotations

import base64

import pytest

from vltrain.errors import DataError
from vltrain.evaluate.questions import answer_questions, group_of
from vltrain.evaluate.results import Accuracy


def ask(subject, encoder, samples, **changes):
    settings = {
        "batch_records": 2,
        "max_new_tokens": 24,
        "blank_control": True,
        "keep": 1,
        **changes,
    }
    return answer_questions(subject, samples=samples, encoder=encoder, **settings)


def test_groups_are_scored_apart_with_their_blank_control(
    rule_subject, rule_encoder, make_question
):
    samples = [
        make_question("what-1", "What color?", " Red ", color="red"),
        make_question("what-2", "What color?", "green", color="blue"),
        make_question("what-3", "What color?", "blue", color="blue"),
        make_question("is-1", "Is it grey?", "grey", color="red"),
    ]
    found = ask(rule_subject, rule_encoder, samples)
    assert found.groups == {
        "is": Accuracy(asked=1, right=0, right_blank=1, chance=None),
        "what": Accuracy(asked=3, right=2, right_blank=0, chance=None),
    }
    assert found.groups["what"].share == pytest.approx(2 / 3)
    assert found.groups["what"].blank_share == 0.0
    assert [(s.group, s.key) for s in found.samples] == [("is", "is-1"), ("what", "what-1")]
    shown = found.samples[1]
    assert (shown.question, shown.expected) == ("What color?", "Red")
    assert (shown.answer, shown.blank_answer, shown.is_right) == ("red", "grey", True)
    assert base64.b64decode(shown.image_png or "").startswith(b"\x89PNG")


def test_questions_without_a_picture_have_no_blank_figure(
    rule_subject, rule_encoder, make_question
):
    found = ask(rule_subject, rule_encoder, [make_question("1", "Color?", "grey", color=None)])
    assert found.groups == {"all": Accuracy(asked=1, right=1, right_blank=None, chance=None)}
    assert found.samples[0].image_png is None


def test_answers_are_cut_at_the_limit(rule_subject, rule_encoder, make_question):
    samples = [make_question("1", "Color?", "blue", color="blue")]
    found = ask(rule_subject, rule_encoder, samples, max_new_tokens=1, blank_control=False)
    assert found.groups["all"].right == 0


def test_a_damaged_picture_is_counted(
    rule_subject, rule_encoder, make_question, broken_question, caplog
):
    samples = [broken_question("what-9"), make_question("what-1", "Color?", "red", color="red")]
    found = ask(rule_subject, rule_encoder, samples)
    assert found.faults == 1
    assert found.groups["what"].asked == 1
    assert "quiz:a.tar:what-9 left out: not_an_image" in caplog.text


def test_nothing_to_ask_is_an_error(rule_subject, rule_encoder, make_text):
    with pytest.raises(DataError, match="expected conversation records"):
        ask(rule_subject, rule_encoder, [make_text("1", "prose")])


def test_group_of():
    assert group_of("what-000123") == "what"
    assert group_of("test/is-7") == "is"
    assert group_of("000123") == "all"
    assert group_of("12-7") == "all"
