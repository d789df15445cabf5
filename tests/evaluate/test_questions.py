"""Question answering: exact matches by group, the same words asked blind."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace

import pytest

from vltrain.batch import Boxes, Role, Sample, Special, Turn
from vltrain.errors import DataError
from vltrain.evaluate.questions import answer_questions, group_of
from vltrain.evaluate.results import Accuracy, BoxFigures, BoxScore
from vltrain.evaluate.subject import Subject


def ask(subject, encoder, samples, **changes):
    settings = {
        "batch_records": 2,
        "max_new_tokens": 24,
        "iou_threshold": 0.5,
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


@pytest.fixture
def pointing(rule_subject, rule_tokenizer) -> Callable[[dict[str, str]], Subject]:
    """A model that answers by the colour it sees (grey: blanked) what the test says."""

    def make(answers: dict[str, str]) -> Subject:
        def generate(prompts, *, images, max_new_tokens):
            colors = rule_subject.generate(prompts, images=images, max_new_tokens=24)
            seen = [rule_tokenizer.decode(ids).strip() for ids in colors]
            return [rule_tokenizer.encode(answers[color])[:max_new_tokens] for color in seen]

        return replace(rule_subject, generate=generate)

    return make


@pytest.fixture
def make_pointing_question(make_question):
    """``make(key, color, boxes)``: in a picture of 32 x 32 pixels."""

    def make(key: str, color: str, *boxes: tuple[float, float, float, float]) -> Sample:
        sample = make_question(key, "Where?", "", color=color)
        content = (Special.det, Boxes(image=0, boxes=boxes), Special.det_end)
        return replace(sample, turns=(sample.turns[0], Turn(role=Role.assistant, content=content)))

    return make


LEFT, TOP, CORNER = (0, 0, 16, 32), (0, 0, 32, 16), (24, 24, 32, 32)


def test_answers_with_boxes_are_scored_by_them(
    pointing, rule_encoder, make_question, make_pointing_question
):
    subject = pointing(
        {
            "red": "<|det|>[[0, 0, 999, 999]]<|/det|>",
            "green": "I do not know",
            "blue": "<|det|>[[0, 0, 999, 999], [750, 750, 999, 999]]<|/det|>",
            "grey": "<|det|>[[750, 750, 999, 999]]<|/det|>",
        }
    )
    samples = [
        make_pointing_question("find-1", "red", LEFT),  # right, IoU 1/2; blind 0
        make_pointing_question("find-2", "red", CORNER),  # wrong, 1/16; blind about 1
        make_pointing_question("find-3", "green", TOP),  # says nothing; blind 0
        make_pointing_question("find-4", "blue", LEFT, CORNER),  # both, 1/2 and 1; blind one
        make_question("find-5", "What color?", "I do not know", color="green"),
        make_pointing_question("see-1", "red", TOP),
    ]
    found = ask(subject, rule_encoder, samples, max_new_tokens=99, keep=2)
    assert found.groups == {"find": Accuracy(asked=1, right=1, right_blank=0, chance=None)}
    figures = found.boxes["find"]
    assert figures.threshold == 0.5
    almost = pytest.approx((1 / 2 + 1 / 16 + 0 + 3 / 4) / 4, abs=0.002)
    assert figures.seen == BoxFigures(
        one_box=3, right=1, several_boxes=1, f1=1.0, iou=almost, unreadable=1
    )
    blind = pytest.approx((0 + 1 + 0 + 1 / 2) / 4, abs=0.005)
    assert figures.blank == BoxFigures(
        one_box=3, right=1, several_boxes=1, f1=pytest.approx(2 / 3), iou=blind, unreadable=0
    )
    assert found.boxes["see"].seen.right == 1
    shown = found.samples[:2]
    assert [(s.key, s.is_right) for s in shown] == [("find-1", True), ("find-2", False)]
    assert shown[0].boxes == BoxScore(expected=1, readable=True, f1=1.0, iou=0.5)
    assert shown[0].expected == "<|det|>[[0, 0, 500, 999]]<|/det|>"


def test_the_threshold_and_the_blank_control_are_chosen(
    pointing, rule_encoder, make_pointing_question
):
    subject = pointing({"red": "<|det|>[[0, 0, 999, 999]]<|/det|>"})
    settings = {"max_new_tokens": 99, "blank_control": False, "iou_threshold": 0.6}
    found = ask(subject, rule_encoder, [make_pointing_question("1", "red", LEFT)], **settings)
    assert found.groups == {}
    assert found.boxes["all"].threshold == 0.6
    assert found.boxes["all"].seen.right == 0
    assert found.boxes["all"].blank is None


def test_boxes_that_the_limit_cuts_off_are_told(
    pointing, rule_encoder, make_pointing_question, caplog
):
    answers = {"red": "<|det|>[[0, 0, 999, 999]]<|/det|>", "green": "no", "blue": "no", "grey": ""}
    colors = ("red", "red", "green")
    samples = [make_pointing_question(str(n), c, LEFT) for n, c in enumerate(colors)]
    found = ask(pointing(answers), rule_encoder, samples, max_new_tokens=9)
    assert found.boxes["all"].seen.unreadable == 3
    assert "of 3 answers without a box 2 were cut at evaluate.max_new_tokens=9" in caplog.text
    caplog.clear()
    ask(pointing(answers), rule_encoder, samples, max_new_tokens=99)
    assert "cut" not in caplog.text


def test_boxes_outside_their_picture_are_a_fault(
    pointing, rule_encoder, make_pointing_question, caplog
):
    answers = {"red": "no", "grey": "no"}
    samples = [
        make_pointing_question("find-1", "red", LEFT),
        make_pointing_question("find-2", "red", (0, 0, 33, 32)),
    ]
    found = ask(pointing(answers), rule_encoder, samples)
    assert (found.faults, found.boxes["find"].iou.asked) == (1, 1)
    assert "quiz:a.tar:find-2 left out: bad_box: [0, 0, 33, 32] reaches out" in caplog.text


def test_nothing_to_ask_is_an_error(rule_subject, rule_encoder, make_text):
    with pytest.raises(DataError, match="expected conversation records"):
        ask(rule_subject, rule_encoder, [make_text("1", "prose")])


def test_group_of():
    assert group_of("what-000123") == "what"
    assert group_of("test/is-7") == "is"
    assert group_of("000123") == "all"
    assert group_of("12-7") == "all"
