"""Accuracy of greedy answers to held-out questions, with the picture and with it blanked.

In: conversation samples. Out: exact matches (apart from case and outer space) by group. The group
is the key's word before its first hyphen (``what-000123`` -> ``what``), because a set's easy
questions hide its hard ones: most of easy-VQA's yes/no questions can be answered from the
question alone. The blank run is asked with the same words.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vltrain.batch import Example, Role, Sample
from vltrain.errors import DataError, RecordFault
from vltrain.evaluate.results import Accuracy, AnsweredSample, same_answer
from vltrain.evaluate.subject import Subject, batched
from vltrain.processing.encode import Encoder

_log = logging.getLogger(__name__)

_SHOWN_SIDE = 128  # pixels of a picture kept for the report


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionResults:
    """``groups``: figures by group. ``samples``: the first ``keep`` of each group."""

    groups: dict[str, Accuracy]
    samples: tuple[AnsweredSample, ...]
    faults: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Question:
    prompt: Example
    group: str
    question: str
    expected: str


def answer_questions(
    subject: Subject,
    *,
    samples: Iterable[Sample],
    encoder: Encoder,
    batch_records: int,
    max_new_tokens: int,
    blank_control: bool,
    keep: int,
) -> QuestionResults:
    """Ask every assistant turn of every sample, the turns before it given as they are recorded.

    Raises DataError when no question can be asked.
    """
    questions, faults = _questions(samples, encoder=encoder)
    answered: list[AnsweredSample] = []
    kept: dict[str, int] = {}
    for asked in batched(questions, batch_records):
        usable, squares = [], []
        for question in asked:
            try:
                squares.append(subject.squares(question.prompt))
                usable.append(question)
            except RecordFault as fault:
                _log.warning("questions: %s left out: %s", question.prompt.origin, fault)
                faults += 1
        if not usable:
            continue
        answers = _answer(subject, usable, squares, encoder, max_new_tokens, blank=False)
        blank_answers: Sequence[str | None] = [None] * len(usable)
        if blank_control and any(len(s) for s in squares):
            blank_answers = _answer(subject, usable, squares, encoder, max_new_tokens, blank=True)
        for question, pictures, answer, blank_answer in zip(
            usable, squares, answers, blank_answers, strict=True
        ):
            kept[question.group] = kept.get(question.group, 0) + 1
            show = kept[question.group] <= keep and len(pictures) > 0
            answered.append(
                AnsweredSample(
                    source=question.prompt.origin.source,
                    group=question.group,
                    key=question.prompt.origin.key,
                    question=question.question,
                    expected=question.expected,
                    answer=answer,
                    blank_answer=blank_answer if len(pictures) else None,
                    image_png=_png(pictures[0]) if show else None,
                )
            )
    if not answered:
        raise DataError(
            f"no question could be asked: {faults} faulty records; expected conversation records "
            "with a user and an assistant turn in data.held_out"
        )
    return _results(answered, keep=keep, faults=faults)


def group_of(key: str) -> str:
    """``what-000123`` -> ``what``; a key without such a word belongs to ``all``."""
    word, hyphen, _ = key.rpartition("/")[2].partition("-")
    return word if hyphen and word.isalpha() else "all"


def _answer(
    subject: Subject,
    questions: Sequence[_Question],
    squares: Sequence[np.ndarray],
    encoder: Encoder,
    max_new_tokens: int,
    *,
    blank: bool,
) -> list[str]:
    ids = subject.generate(
        [question.prompt for question in questions],
        images=subject.pictures(squares, blank=blank),
        max_new_tokens=max_new_tokens,
    )
    return [encoder.tokenizer.decode(new, skip_special=True).strip() for new in ids]


def _questions(samples: Iterable[Sample], *, encoder: Encoder) -> tuple[list[_Question], int]:
    questions: list[_Question] = []
    faults = 0
    for sample in samples:
        try:
            questions += list(_questions_of(sample, encoder=encoder))
        except RecordFault as fault:
            _log.warning("questions: %s left out: %s", sample.origin, fault)
            faults += 1
    return questions, faults


def _questions_of(sample: Sample, *, encoder: Encoder) -> Iterator[_Question]:
    for position, turn in enumerate(sample.turns):
        if turn.role is not Role.assistant:
            continue
        before = sample.turns[:position]
        users = [t for t in before if t.role is Role.user]
        yield _Question(
            prompt=encoder.prompt_ids(before, sample.images, origin=sample.origin),
            group=group_of(sample.origin.key),
            question=encoder.written(users[-1], sample.images) if users else "",
            expected=encoder.written(turn, sample.images),
        )


def _results(answered: list[AnsweredSample], *, keep: int, faults: int) -> QuestionResults:
    groups: dict[str, list[AnsweredSample]] = {}
    for sample in answered:
        groups.setdefault(sample.group, []).append(sample)
    figures = {}
    for group, members in sorted(groups.items()):
        blank = [m.blank_answer for m in members]
        figures[group] = Accuracy(
            asked=len(members),
            right=sum(m.is_right for m in members),
            right_blank=None
            if any(b is None for b in blank)
            else sum(same_answer(m.blank_answer or "", m.expected) for m in members),
            chance=None,
        )
    return QuestionResults(
        groups=figures,
        samples=tuple(m for _, members in sorted(groups.items()) for m in members[:keep]),
        faults=faults,
    )


def _png(square: np.ndarray) -> str:
    """uint8 (S, S, 3) -> base64 PNG, at most 128 pixels a side."""
    image = Image.fromarray(square)
    image.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
