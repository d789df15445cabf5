"""Accuracy of greedy answers to held-out questions, with the picture and with it blanked.

In: conversation samples. Out: by group, exact matches (apart from case and outer space); where the
recorded answer holds boxes, how well the answer's boxes agree with them (``boxes``). The group
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

from vltrain.batch import Boxes, Example, Role, Sample
from vltrain.errors import DataError, RecordFault
from vltrain.evaluate.boxes import box_figures, score_boxes
from vltrain.evaluate.results import (
    Accuracy,
    AnsweredSample,
    BoxAccuracy,
    BoxScore,
    same_answer,
)
from vltrain.evaluate.subject import Subject, batched
from vltrain.processing.encode import Encoder
from vltrain.processing.grounding import Box, shares_of

_log = logging.getLogger(__name__)

_SHOWN_SIDE = 128  # pixels of a picture kept for the report


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionResults:
    """``groups``, ``boxes``: figures by group, of answers in words and with boxes. ``samples``: the
    first ``keep`` of each group."""

    groups: dict[str, Accuracy]
    boxes: dict[str, BoxAccuracy]
    samples: tuple[AnsweredSample, ...]
    faults: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Question:
    prompt: Example
    group: str
    question: str
    expected: str
    boxes: tuple[Box, ...]  # of the recorded answer; none: it is words


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answered:
    """``blank_boxes``: score of the blank answer, where boxes are scored and it was asked.
    ``is_cut``: the answer has as many tokens as it may have."""

    sample: AnsweredSample
    blank_boxes: BoxScore | None
    is_cut: bool


def answer_questions(
    subject: Subject,
    *,
    samples: Iterable[Sample],
    encoder: Encoder,
    batch_records: int,
    max_new_tokens: int,
    iou_threshold: float,
    blank_control: bool,
    keep: int,
) -> QuestionResults:
    """Ask every assistant turn of every sample, the turns before it given as they are recorded.

    Raises DataError when no question can be asked.
    """
    questions, faults = _questions(samples, encoder=encoder)
    answered: list[_Answered] = []
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
        ids = _answer(subject, usable, squares, max_new_tokens, blank=False)
        blank_ids: Sequence[list[int] | None] = [None] * len(usable)
        if blank_control and any(len(s) for s in squares):
            blank_ids = _answer(subject, usable, squares, max_new_tokens, blank=True)
        for question, pictures, new, blank in zip(usable, squares, ids, blank_ids, strict=True):
            kept[question.group] = kept.get(question.group, 0) + 1
            show = kept[question.group] <= keep and len(pictures) > 0
            scored = _scored(
                question,
                answer=_text(new, encoder),
                blank=_text(blank, encoder) if blank is not None and len(pictures) else None,
                is_cut=len(new) == max_new_tokens,
                image_png=_png(pictures[0]) if show else None,
                iou_threshold=iou_threshold,
            )
            answered.append(scored)
    if not answered:
        raise DataError(
            f"no question could be asked: {faults} faulty records; expected conversation records "
            "with a user and an assistant turn in data.held_out"
        )
    _warn_of_cut_boxes(answered, max_new_tokens=max_new_tokens)
    return _results(answered, keep=keep, faults=faults, iou_threshold=iou_threshold)


def group_of(key: str) -> str:
    """``what-000123`` -> ``what``; a key without such a word belongs to ``all``."""
    word, hyphen, _ = key.rpartition("/")[2].partition("-")
    return word if hyphen and word.isalpha() else "all"


def _answer(
    subject: Subject,
    questions: Sequence[_Question],
    squares: Sequence[np.ndarray],
    max_new_tokens: int,
    *,
    blank: bool,
) -> list[list[int]]:
    return subject.generate(
        [question.prompt for question in questions],
        images=subject.pictures(squares, blank=blank),
        max_new_tokens=max_new_tokens,
    )


def _text(ids: list[int], encoder: Encoder) -> str:
    return encoder.tokenizer.decode(ids, skip_special=True).strip()


def _scored(
    question: _Question,
    *,
    answer: str,
    blank: str | None,
    is_cut: bool,
    image_png: str | None,
    iou_threshold: float,
) -> _Answered:
    def boxes(said: str | None) -> BoxScore | None:
        if said is None or not question.boxes:
            return None
        return score_boxes(said, expected=question.boxes, threshold=iou_threshold)

    sample = AnsweredSample(
        source=question.prompt.origin.source,
        group=question.group,
        key=question.prompt.origin.key,
        question=question.question,
        expected=question.expected,
        answer=answer,
        blank_answer=blank,
        image_png=image_png,
        boxes=boxes(answer),
    )
    return _Answered(sample=sample, blank_boxes=boxes(blank), is_cut=is_cut)


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
            boxes=tuple(
                box
                for part in turn.content
                if isinstance(part, Boxes)
                for box in shares_of(part, images=sample.images)
            ),
        )


def _warn_of_cut_boxes(answered: Iterable[_Answered], *, max_new_tokens: int) -> None:
    unreadable = [a for a in answered if a.sample.boxes is not None and not a.sample.boxes.readable]
    cut = sum(a.is_cut for a in unreadable)
    if cut:
        _log.warning(
            "questions: of %d answers without a box %d were cut at evaluate.max_new_tokens=%d; "
            "raise it if boxes need more",
            len(unreadable),
            cut,
            max_new_tokens,
        )


def _results(
    answered: Sequence[_Answered], *, keep: int, faults: int, iou_threshold: float
) -> QuestionResults:
    groups: dict[str, list[_Answered]] = {}
    for one in answered:
        groups.setdefault(one.sample.group, []).append(one)
    words: dict[str, Accuracy] = {}
    boxes: dict[str, BoxAccuracy] = {}
    for group, members in sorted(groups.items()):
        in_words = [m.sample for m in members if m.sample.boxes is None]
        if in_words:
            words[group] = _accuracy(in_words)
        seen = [m.sample.boxes for m in members if m.sample.boxes is not None]
        blank = [m.blank_boxes for m in members if m.blank_boxes is not None]
        if seen:
            boxes[group] = BoxAccuracy(
                threshold=iou_threshold,
                seen=box_figures(seen),
                blank=box_figures(blank) if len(blank) == len(seen) else None,
            )
    return QuestionResults(
        groups=words,
        boxes=boxes,
        samples=tuple(m.sample for _, members in sorted(groups.items()) for m in members[:keep]),
        faults=faults,
    )


def _accuracy(members: Sequence[AnsweredSample]) -> Accuracy:
    blank = [m.blank_answer for m in members]
    return Accuracy(
        asked=len(members),
        right=sum(m.is_right for m in members),
        right_blank=None
        if any(b is None for b in blank)
        else sum(same_answer(m.blank_answer or "", m.expected) for m in members),
        chance=None,
    )


def _png(square: np.ndarray) -> str:
    """uint8 (S, S, 3) -> base64 PNG, at most 128 pixels a side."""
    image = Image.fromarray(square)
    image.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
