"""Questions and answers as one conversation record."""

from __future__ import annotations

from collections.abc import Sequence

from vltrain.data.writer import ShardRecord, conversation_record


def question_record(
    key: str,
    *,
    turns: Sequence[tuple[str, str]],
    images: Sequence[bytes] = (),
    extension: str = "png",
) -> ShardRecord:
    """``turns`` are (question, answer) pairs. All images stand before the first question; later
    turns speak about them."""
    messages = []
    for number, (question, answer) in enumerate(turns):
        marks = "<image>\n" * len(images) if number == 0 else ""
        messages += [("user", marks + question), ("assistant", answer)]
    return conversation_record(key, messages=messages, images=images, extension=extension)
