"""Turns in, template segments out: the only place that knows how a conversation is written down.

A segment is a stretch of text, one image, one special token or one list of boxes, and says whether
an assistant wrote it and whether an end token follows. What is learned is a property of the
segment: nothing is ever found again by re-tokenising a prefix and counting, which is how masks
silently go wrong (tokenizers merge across the border).

The DeepSeek template (released code): optional system text and a blank line; then for each exchange
``User: `` text, a blank line, ``Assistant:``, and the answer as `` text`` and the end token. A
prompt for inference stops after ``Assistant:``, which is exactly where the answer's segment begins.
Contents are stripped. A ``document`` (caption, plain text, interleaved) is its content as it is,
and the end token; nobody prompted it, so it counts as an answer from end to end.

The released code has two more for stages 1 and 2. ``plain`` writes contents one after the other
with nothing between them. ``alignment`` keeps of what is asked only the images, each followed by a
line end (so a caption's image stands in a line of its own). Neither writes system text. Both end
an answer with the end token here, where the released code writes none: a caption must end.

DeepSeek-VL2's (``deepseek_vl2``, as its released processor makes ids of a conversation) has tokens
for roles: ``<|User|>``, ``: `` text, a blank line, ``<|Assistant|>``, ``:``, and the answer with no
space before it and the end token. A system turn of the sample stands before it as it is; only a
prompt that the stage gives is followed by a blank line.

Words of the template, or of special tokens, inside a content are content: they are learned or not
as the turn that they stand in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vltrain.batch import Part, Role, Special, Template, Turn
from vltrain.errors import RecordFault

TEMPLATE_VERSION = "deepseek-1"
"""Part of the token sidecar's key: change it with any change of what is written below."""
ROLE_TOKENS = {Template.deepseek_vl2: (Special.user, Special.assistant)}
"""Tokens without which a template cannot be written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """One stretch. content: one part. learned: True where an assistant (or a document) wrote it.
    end: True where the end token follows, learned as the segment is."""

    content: Part
    learned: bool
    end: bool


def render(turns: Sequence[Turn], *, system_prompt: str, template: Template) -> tuple[Segment, ...]:
    """Segments of a whole training sample; the first token is not part of them.

    ``system_prompt`` is used where the sample has no system turn; "" writes none.
    Raises RecordFault ``bad_turns``, ``empty_answer``, ``empty_document`` or ``image_in_answer``.
    """
    if any(turn.role is Role.document for turn in turns):
        return _render_document(turns, template)
    system, exchanges = _split_system(turns, system_prompt=system_prompt, template=template)
    if not exchanges or len(exchanges) % 2:
        raise RecordFault("bad_turns", f"a conversation ends with an answer; found {_roles(turns)}")
    segments: list[Segment] = []
    prefix = system
    # "Assistant:" ends without a space, so that a prompt ends where the answer begins.
    space = " " if template is Template.deepseek else ""
    for question, answer in zip(exchanges[::2], exchanges[1::2], strict=True):
        segments += _prompt_segments(question, prefix=prefix, template=template)
        *parts, last = _joined([space, *_answer(answer)])
        segments += [Segment(content=part, learned=True, end=False) for part in parts]
        segments.append(Segment(content=last, learned=True, end=True))
        prefix = ""
    return tuple(segments)


def render_prompt(
    turns: Sequence[Turn], *, system_prompt: str, template: Template
) -> tuple[Segment, ...]:
    """Segments of a prompt for inference: the last turn is the user's and is followed by
    ``Assistant:``. A document is left open: its content without the end token.

    Raises RecordFault as ``render`` does.
    """
    if any(turn.role is Role.document for turn in turns):
        return tuple(
            Segment(content=s.content, learned=s.learned, end=False)
            for s in _document_parts(turns, template)
        )
    system, exchanges = _split_system(turns, system_prompt=system_prompt, template=template)
    if len(exchanges) % 2 == 0:
        raise RecordFault("bad_turns", f"a prompt ends with the user's turn; found {_roles(turns)}")
    if len(exchanges) == 1:
        return tuple(_prompt_segments(exchanges[0], prefix=system, template=template))
    history = render(turns[:-1], system_prompt=system_prompt, template=template)
    return (*history, *_prompt_segments(exchanges[-1], prefix="", template=template))


def _split_system(
    turns: Sequence[Turn], *, system_prompt: str, template: Template
) -> tuple[str, Sequence[Turn]]:
    """The system text with what follows it ("" if none), and the turns after it, checked to
    alternate."""
    exchanges, after = turns, "\n\n"
    if turns and turns[0].role is Role.system:
        system_prompt = ""
        for part in turns[0].content:
            if not isinstance(part, str):
                what = "an image" if isinstance(part, int) else "boxes or a special token"
                raise RecordFault("bad_turns", f"{what} in the system turn")
            system_prompt += part
        exchanges = turns[1:]
        after = "" if template is Template.deepseek_vl2 else after
    expected = (Role.user, Role.assistant)
    for position, turn in enumerate(exchanges):
        if turn.role is not expected[position % 2]:
            raise RecordFault(
                "bad_turns",
                "user and assistant must take turns after at most one system turn; "
                f"found {_roles(turns)}",
            )
    system = system_prompt.strip()
    return (system + after if system else ""), exchanges


def _prompt_segments(turn: Turn, *, prefix: str, template: Template) -> list[Segment]:
    """What is asked as ``template`` writes it. deepseek: ``prefix`` + "User: " + content + blank
    line + "Assistant:"."""
    content = _stripped(turn.content)
    if template is Template.deepseek:
        content = [prefix + "User: ", *content, "\n\nAssistant:"]
    elif template is Template.deepseek_vl2:
        content = [prefix, Special.user, ": ", *content, "\n\n", Special.assistant, ":"]
    elif template is Template.alignment:
        content = [p for part in content if isinstance(part, int) for p in (part, "\n")]
    return [Segment(content=piece, learned=False, end=False) for piece in _joined(content)]


def _joined(content: Sequence[Part]) -> list[Part]:
    """Adjacent texts as one, so that they are tokenised as one; empty ones left out."""
    pieces: list[Part] = []
    for part in content:
        if isinstance(part, str) and pieces and isinstance(pieces[-1], str):
            pieces[-1] += part
        elif part != "":
            pieces.append(part)
    return pieces


def _stripped(content: Sequence[Part]) -> list[Part]:
    """Content without white space at its two ends (as one text, all else counting as ink)."""
    parts = list(content)
    while parts and isinstance(parts[0], str):
        parts[0] = parts[0].lstrip()
        if parts[0]:
            break
        parts.pop(0)
    while parts and isinstance(parts[-1], str):
        parts[-1] = parts[-1].rstrip()
        if parts[-1]:
            break
        parts.pop()
    return parts


def _answer(turn: Turn) -> list[Part]:
    if any(isinstance(part, int) for part in turn.content):
        raise RecordFault("image_in_answer", "an image in an assistant turn cannot be learned")
    content = _stripped(turn.content)
    if not content:
        raise RecordFault("empty_answer", "an assistant turn has no text")
    return content


def _document_parts(turns: Sequence[Turn], template: Template) -> list[Segment]:
    if len(turns) != 1:
        raise RecordFault("bad_turns", f"a document stands alone; found {_roles(turns)}")
    content = [part for part in turns[0].content if part != ""]
    segments = [Segment(content=part, learned=True, end=False) for part in content]
    caption = [type(part) for part in content] in ([int], [int, str])
    if template is Template.alignment and caption:
        segments.insert(1, Segment(content="\n", learned=False, end=False))
    return segments


def _render_document(turns: Sequence[Turn], template: Template) -> tuple[Segment, ...]:
    parts = _document_parts(turns, template)
    if not any(isinstance(s.content, str) and s.content.strip() for s in parts):
        raise RecordFault("empty_document", "no text to learn")
    last = parts[-1]
    return (*parts[:-1], Segment(content=last.content, learned=last.learned, end=True))


def _roles(turns: Sequence[Turn]) -> str:
    return ", ".join(turn.role.value for turn in turns) or "no turns"
