"""A message of a conversation's JSON in, its role and the parts of its content out.

A content is text, in which every ``<image>`` stands for the next image, or a list of parts:
OpenAI's ``{"type": "text", "text"}`` and ``{"type": "image"}`` or ``{"type": "image_url", ...}``
(the next image, whatever it names), and three for grounding, because special tokens are never
made of words: ``{"type": "ref", "text"}``, what is meant; ``{"type": "boxes", "boxes": [[left, top,
right, bottom], ...], "image"}``, where it is, in pixels of the image of that number (0 if it is
left out); ``{"type": "grounding"}``, which asks for boxes. Whether a box lies in its image is the
encoder's to check, which knows what it is written as.
"""

from __future__ import annotations

from typing import Any

from vltrain.batch import Boxes, Part, Role, Special
from vltrain.errors import RecordFault

IMAGE_MARK = "<image>"
_ROLES = {
    "system": Role.system,
    "user": Role.user,
    "human": Role.user,
    "assistant": Role.assistant,
    "gpt": Role.assistant,
}


def parse_message(row: object) -> tuple[Role, list[Part | None]]:
    """Role and content of one message, {"role", "content"} or {"from", "value"}; None stands for
    the next image. Raises RecordFault ``bad_record``."""
    if not isinstance(row, dict):
        raise RecordFault("bad_record", f"a message is a {type(row).__name__}, not an object")
    name, content = row.get("role", row.get("from")), row.get("content", row.get("value"))
    if not isinstance(name, str) or name not in _ROLES:
        raise RecordFault("bad_record", f"role {name!r} is none of {sorted(_ROLES)}")
    if isinstance(content, str):
        parts: list[Part | None] = []
        for text in content.split(IMAGE_MARK):
            parts += [None, text]
        return _ROLES[name], parts[1:]
    if isinstance(content, list):
        return _ROLES[name], [p for part in content for p in _parts(part, name=name)]
    raise RecordFault("bad_record", f"content of a {name} message is no text")


def _parts(part: object, *, name: str) -> list[Part | None]:
    """What one of a list's parts becomes."""
    found: dict[str, Any] = part if isinstance(part, dict) else {}
    kind, text = found.get("type"), found.get("text")
    if kind == "text" and isinstance(text, str):
        return [text]
    if kind in ("image", "image_url"):
        return [None]
    if kind == "ref" and isinstance(text, str):
        return [Special.ref, text, Special.ref_end]
    if kind == "grounding":
        return [Special.grounding]
    if kind == "boxes":
        image, rows = found.get("image", 0), found.get("boxes")
        if type(image) is int and isinstance(rows, list) and all(map(_is_box, rows)):
            return [
                Special.det,
                Boxes(image=image, boxes=tuple((a, b, c, d) for a, b, c, d in rows)),
                Special.det_end,
            ]
        raise RecordFault(
            "bad_record",
            f"boxes of a {name} message are not an image's number and lists of four numbers",
        )
    raise RecordFault(
        "bad_record",
        f"a part of a {name} message has type {kind!r}: expected text (with text), image, "
        "image_url, ref (with text), boxes or grounding",
    )


def _is_box(row: object) -> bool:
    return isinstance(row, list) and len(row) == 4 and all(map(_is_pixels, row))


def _is_pixels(number: object) -> bool:
    """JSON has integers of any length, of which few are a float."""
    return type(number) is float or (type(number) is int and abs(number) < 2**53)
