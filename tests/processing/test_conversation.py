from __future__ import annotations

import pytest

from vltrain.batch import Role, Template, Turn
from vltrain.errors import RecordFault
from vltrain.processing import conversation
from vltrain.processing.conversation import Segment


def system(*content):
    return Turn(role=Role.system, content=content)


def user(*content):
    return Turn(role=Role.user, content=content)


def assistant(*content):
    return Turn(role=Role.assistant, content=content)


def document(*content):
    return Turn(role=Role.document, content=content)


def render(turns, *, system_prompt, template=Template.deepseek):
    return conversation.render(turns, system_prompt=system_prompt, template=template)


def render_prompt(turns, *, system_prompt, template=Template.deepseek):
    return conversation.render_prompt(turns, system_prompt=system_prompt, template=template)


def prompt(content):
    return Segment(content=content, learned=False, end=False)


def answer(content):
    return Segment(content=content, learned=True, end=True)


def test_one_exchange():
    assert render([user(" Hi? "), assistant("Yes.\n")], system_prompt="") == (
        prompt("User: Hi?\n\nAssistant:"),
        answer(" Yes."),
    )


def test_system_text_and_two_exchanges():
    turns = [system("Be kind. "), user("a"), assistant("b"), user("c"), assistant("d")]
    assert render(turns, system_prompt="unused") == (
        prompt("Be kind.\n\nUser: a\n\nAssistant:"),
        answer(" b"),
        prompt("User: c\n\nAssistant:"),
        answer(" d"),
    )


def test_default_system_prompt():
    assert render([user("a"), assistant("b")], system_prompt="Be kind.") == (
        prompt("Be kind.\n\nUser: a\n\nAssistant:"),
        answer(" b"),
    )


def test_images_in_the_users_turn():
    turns = [user("\n", 0, "\nWhat? ", 1, " "), assistant("A", " cat")]
    assert render(turns, system_prompt="") == (
        prompt("User: "),
        prompt(0),
        prompt("\nWhat? "),
        prompt(1),
        prompt("\n\nAssistant:"),
        answer(" A cat"),
    )


def test_document_is_as_it_is():
    assert render([document(0, "", " A cat.\n")], system_prompt="unused") == (
        Segment(content=0, learned=True, end=False),
        answer(" A cat.\n"),
    )


def test_document_ending_with_an_image_ends_after_it():
    assert render([document("A", 0)], system_prompt="")[-1] == answer(0)


def test_prompts_end_open():
    assert render_prompt([user(0, "What?")], system_prompt="") == (
        prompt("User: "),
        prompt(0),
        prompt("What?\n\nAssistant:"),
    )
    turns = [system("S"), user("a"), assistant("b"), user("c")]
    assert render_prompt(turns, system_prompt="") == (
        prompt("S\n\nUser: a\n\nAssistant:"),
        answer(" b"),
        prompt("User: c\n\nAssistant:"),
    )
    assert render_prompt([document(0, "A")], system_prompt="") == (
        Segment(content=0, learned=True, end=False),
        Segment(content="A", learned=True, end=False),
    )


def test_a_prompt_is_the_beginning_of_its_training_sample():
    turns = [user("a"), assistant("b"), user("c", 0), assistant("d")]
    whole = render(turns, system_prompt="S")
    assert whole[:-1] == render_prompt(turns[:-1], system_prompt="S")


TWO_QUESTIONS = [
    system("Be brief."),
    user("\n", 0, "\nWhat? ", 1),
    assistant(" A cat "),
    user(" And? "),
    assistant("A dog"),
]


def test_the_plain_template_writes_nothing_around_contents():
    assert render(TWO_QUESTIONS, system_prompt="unused", template=Template.plain) == (
        prompt(0),
        prompt("\nWhat? "),
        prompt(1),
        answer("A cat"),
        prompt("And?"),
        answer("A dog"),
    )
    turns = [document(0, "A cat.")]
    assert render(turns, system_prompt="", template=Template.plain) == render(
        turns, system_prompt=""
    )


def test_the_alignment_template_keeps_the_images_of_a_question():
    assert render(TWO_QUESTIONS, system_prompt="unused", template=Template.alignment) == (
        prompt(0),
        prompt("\n"),
        prompt(1),
        prompt("\n"),
        answer("A cat"),
        answer("A dog"),
    )


def test_the_alignment_template_puts_a_captions_image_in_its_own_line():
    caption, line_end = Segment(content=0, learned=True, end=False), prompt("\n")
    assert render([document(0, "A cat.")], system_prompt="", template=Template.alignment) == (
        caption,
        line_end,
        answer("A cat."),
    )
    assert render_prompt([document(0)], system_prompt="", template=Template.alignment) == (
        caption,
        line_end,
    )
    page = [document(0, "A cat.", 1)]
    assert render(page, system_prompt="", template=Template.alignment) == render(
        page, system_prompt=""
    )


@pytest.mark.parametrize("template", Template)
def test_a_prompt_is_the_beginning_of_its_sample_in_every_template(template):
    whole = render(TWO_QUESTIONS, system_prompt="", template=template)
    first = render_prompt(TWO_QUESTIONS[:2], system_prompt="", template=template)
    assert whole[: len(first)] == first
    assert render_prompt(TWO_QUESTIONS[:-1], system_prompt="", template=template) == whole[:-1]


@pytest.mark.parametrize("template", Template)
def test_every_template_refuses_an_answer_that_is_none(template):
    with pytest.raises(RecordFault, match="no text"):
        render([user("a"), assistant(" ")], system_prompt="", template=template)
    with pytest.raises(RecordFault, match="cannot be learned"):
        render([user("a"), assistant(0, "b")], system_prompt="", template=template)


@pytest.mark.parametrize(
    ("turns", "reason", "words"),
    [
        ([], "bad_turns", "found no turns"),
        ([user("a")], "bad_turns", "ends with an answer; found user"),
        ([assistant("a")], "bad_turns", "take turns"),
        ([user("a"), user("b")], "bad_turns", "found user, user"),
        ([user("a"), system("b")], "bad_turns", "at most one system turn"),
        ([system("s", 0), user("a"), assistant("b")], "bad_turns", "image in the system turn"),
        ([user("a"), assistant(" \n")], "empty_answer", "no text"),
        ([user("a"), assistant("b", 0)], "image_in_answer", "cannot be learned"),
        ([document("a"), document("b")], "bad_turns", "stands alone"),
        ([document("a"), user("b")], "bad_turns", "stands alone"),
        ([document(0)], "empty_document", "no text"),
        ([document(0, " \n")], "empty_document", "no text"),
        ([document()], "empty_document", "no text"),
    ],
)
def test_faults(turns, reason, words):
    with pytest.raises(RecordFault, match=words) as fault:
        render(turns, system_prompt="")
    assert fault.value.reason == reason


def test_a_prompt_must_end_with_the_user():
    with pytest.raises(RecordFault, match="ends with the user's turn; found user, assistant"):
        render_prompt([user("a"), assistant("b")], system_prompt="")
