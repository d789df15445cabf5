"""Text-only conversations: questions about Python names, answered by the first words of their
docstrings.

"What does textwrap.dedent do?" is answered by its docstring's first paragraph; every fourth
conversation about a function asks then how it is called. Train comes from modules that stdlib_text
trains on, held out from modules that it holds out, and an answer that also stands in a held-out
document is dropped from train.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from data_recipes import stdlib_docs
from data_recipes.card import Card, between
from data_recipes.conversations import question_record
from data_recipes.split import Split, choose, fraction, mixed_order
from data_recipes.stdlib_docs import Docstring
from vltrain.batch import RecordKind
from vltrain.data.writer import ShardRecord

_QUESTIONS = {
    "module": ("What is the module {} for?", "What does the Python module {} offer?"),
    "class": ("What is the class {}?", "What is {} in Python?"),
    "function": ("What does {} do?", "Explain {} in Python.", "What is {} for?"),
}
_CALL_QUESTION = "How is it called?"
_TWO_TURN_SHARE = 0.25
_ANSWER_CHARACTERS = (25, 400)
_SIGNATURE_CHARACTERS = 120
_NOT_PROSE = (">>>", "-", "*", ":", "=", "@")
_TABULAR = re.compile(r" -- .* -- |[=~-]{3,}|>>>")


def card() -> Card:
    return Card(
        name="text_sft",
        source="docstrings of the standard library; questions by rule",
        version=stdlib_docs.version(),
        licence=stdlib_docs.LICENCE,
        kind=RecordKind.conversation,
        synthetic=False,
        expected={Split.train: between(3000, 7000), Split.held_out: between(60, 600)},
        attribution=stdlib_docs.ATTRIBUTION,
    )


def samples(split: Split, *, limit: int | None = None) -> Iterator[ShardRecord]:
    records = sorted(_records(split), key=lambda record: mixed_order(record.key))
    return islice(records, limit)


def _records(split: Split) -> Iterator[ShardRecord]:
    seen = _held_out_sentences() if split is Split.train else set()
    for doc in stdlib_docs.docstrings():
        if doc.split is not split or any(part.startswith("_") for part in doc.name.split(".")):
            continue
        answer = first_words(doc.text)
        parts = set(answer.split("\n\n"))
        if not answer or parts & seen:
            continue
        seen |= parts
        yield question_record(doc.name.replace(".", "-"), turns=_turns(doc, answer=answer))


def first_words(text: str) -> str:
    """The first paragraph on one line, and the second where there is room and it is prose; empty
    where there is no usable answer."""
    shortest, longest = _ANSWER_CHARACTERS
    answer = ""
    for paragraph in [_one_line(p) for p in stdlib_docs.paragraphs_of(text) if " " in p][:2]:
        longer = f"{answer}\n\n{paragraph}".strip()
        if len(longer) > longest or not is_prose(paragraph):
            break
        answer = longer
    return answer if len(answer) >= shortest else ""


def is_prose(line: str) -> bool:
    """False for lists, examples, underlined titles and announcements of what follows."""
    return not line.startswith(_NOT_PROSE) and not line.endswith(":") and not _TABULAR.search(line)


def _turns(doc: Docstring, *, answer: str) -> list[tuple[str, str]]:
    question = choose(doc.name, _QUESTIONS[doc.what], purpose="question").format(doc.name)
    turns = [(question, answer)]
    short = 2 < len(doc.signature) <= _SIGNATURE_CHARACTERS
    if short and fraction(doc.name, purpose="two turns") < _TWO_TURN_SHARE:
        turns.append((_CALL_QUESTION, doc.name + doc.signature))
    return turns


def _held_out_sentences() -> set[str]:
    """Every paragraph of the held-out documents, on one line."""
    held_out = (d for d in stdlib_docs.documents() if d.split is Split.held_out)
    return {_one_line(paragraph) for document in held_out for paragraph in document.paragraphs}


def _one_line(paragraph: str) -> str:
    return " ".join(paragraph.split())
