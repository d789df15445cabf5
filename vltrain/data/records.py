"""What the members of a record mean: members and a field map become a Sample.

In: the members of one webdataset key, the source's kind and field map, and a way to read a
member. Out: a Sample whose images carry their size but no bytes (token counts need none; the
reader adds the bytes that a piece needs). Costs one read of the text member. A record that cannot
be used raises RecordFault.

The four kinds, in our own layout: caption ``<key>.<image>`` and ``<key>.txt``; text
``<key>.txt``; interleaved ``<key>.json`` {"texts": [str|null, ...], "images": [null|"0.png",
...]}; conversation ``<key>.json`` {"messages": [{"role", "content"}, ...]}, where every
``<image>`` in a content that is text stands for the next image. LLaVA's {"conversations": [{"from",
"value"}, ...]} is read too, and a content that is OpenAI's list of parts: {"type": "text", "text"},
in which ``<image>`` is a word like any other, and {"type": "image"} or {"type": "image_url",
"image_url": {"url"}}, which stands for the next image whether it names it or not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vltrain.batch import Origin, RecordKind, Role, Sample, StoredImage, Turn
from vltrain.data.index import Member
from vltrain.data.layout import image_order, is_image_extension
from vltrain.errors import ConfigError, RecordFault

IMAGE_MARK = "<image>"
FIELDS = {
    RecordKind.caption: ("image", "text"),
    RecordKind.text: ("text",),
    RecordKind.interleaved: ("json",),
    RecordKind.conversation: ("json", "image"),
}
_DEFAULT_EXTENSION = {"text": "txt", "json": "json"}
_ROLES = {
    "system": Role.system,
    "user": Role.user,
    "human": Role.user,
    "assistant": Role.assistant,
    "gpt": Role.assistant,
}


def check_fields(source: str, *, kind: RecordKind, fields: Mapping[str, str]) -> None:
    """Raise ConfigError for a field that the kind does not have."""
    unknown = sorted(set(fields) - set(FIELDS[kind]))
    if unknown:
        raise ConfigError(
            f"source {source!r}: fields {unknown} unknown for kind {kind.value}; it has "
            f"{list(FIELDS[kind])}"
        )


def parse_record(
    members: Sequence[Member],
    *,
    origin: Origin,
    kind: RecordKind,
    fields: Mapping[str, str],
    read: Callable[[Member], bytes],
) -> Sample:
    """The Sample that the members make. Raises RecordFault (missing_member, ambiguous, bad_text,
    bad_json, bad_record, empty, image_count, or the fault of an image that it needs)."""
    by_name = {member.extension: member for member in members}
    if len(by_name) != len(members):
        raise RecordFault("duplicate_member", f"members {[m.extension for m in members]}")
    record = _Record(by_name, fields=fields, read=read)
    turns, images = _PARSERS[kind](record)
    return Sample(origin=origin, kind=kind, turns=turns, images=tuple(images))


class _Record:
    """The members of one key, by what they are for."""

    def __init__(
        self,
        members: dict[str, Member],
        *,
        fields: Mapping[str, str],
        read: Callable[[Member], bytes],
    ) -> None:
        self._members, self._fields, self._read = members, fields, read

    def member(self, extension: str) -> Member:
        if extension not in self._members:
            raise RecordFault("missing_member", f"no .{extension} among {sorted(self._members)}")
        return self._members[extension]

    def text(self, field: str) -> str:
        """The text of a field, UTF-8, not empty."""
        member = self.member(self._fields.get(field, _DEFAULT_EXTENSION[field]))
        try:
            text = self._read(member).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise RecordFault("bad_text", f".{member.extension} is not UTF-8: {error}") from error
        if not text.strip():
            raise RecordFault("empty", f".{member.extension} holds no text")
        return text

    def document(self) -> dict[str, Any]:
        """The JSON object of the record."""
        text = self.text("json")
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RecordFault("bad_json", f"{error}; it starts with {text[:40]!r}") from error
        if "\\ud" in text.lower():  # half of a surrogate pair cannot be written as UTF-8
            try:
                json.dumps(document, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                raise RecordFault("bad_text", f"half a surrogate pair: {error.reason}") from error
        if not isinstance(document, dict):
            raise RecordFault(
                "bad_record", f"json holds a {type(document).__name__}, not an object"
            )
        return document

    def image(self, extension: str) -> StoredImage:
        """An image member, its size known, its bytes not read."""
        member = self.member(extension.lower())
        if member.reason:
            raise RecordFault(member.reason, f".{member.extension}: {member.detail}")
        if not member.width:
            raise RecordFault("not_an_image", f".{member.extension} has no image extension")
        return StoredImage(
            member=member.extension, data=b"", width=member.width, height=member.height
        )

    def image_members(self) -> list[str]:
        """Extensions of the record's images in reading order."""
        if "image" in self._fields:
            return [self.member(self._fields["image"]).extension]
        return sorted(filter(is_image_extension, self._members), key=image_order)


_Parsed = tuple[tuple[Turn, ...], list[StoredImage]]


def _caption(record: _Record) -> _Parsed:
    names = record.image_members()
    if len(names) != 1:
        reason = "ambiguous" if names else "missing_member"
        raise RecordFault(reason, f"a caption has one image, found {names}")
    text = record.text("text").strip()
    return (Turn(role=Role.document, content=(0, text)),), [record.image(names[0])]


def _text(record: _Record) -> _Parsed:
    return (Turn(role=Role.document, content=(record.text("text"),)),), []


def _interleaved(record: _Record) -> _Parsed:
    document = record.document()
    texts, names = document.get("texts"), document.get("images")
    if not isinstance(texts, list) or not isinstance(names, list) or len(texts) != len(names):
        raise RecordFault("bad_record", "needs lists 'texts' and 'images' of equal length")
    content: list[str | int] = []
    images: list[StoredImage] = []
    for text, name in zip(texts, names, strict=True):
        if isinstance(text, str) and name is None:
            content.append(text)
        elif isinstance(name, str) and text is None:
            content.append(len(images))
            images.append(record.image(name))
        elif text is not None or name is not None:
            raise RecordFault("bad_record", f"position {len(content)}: one of text and image")
    if not any(isinstance(part, str) and part.strip() for part in content):
        raise RecordFault("empty", "an interleaved document without text")
    return (Turn(role=Role.document, content=tuple(content)),), images


def _conversation(record: _Record) -> _Parsed:
    document = record.document()
    rows = document.get("messages", document.get("conversations"))
    if not isinstance(rows, list) or not rows:
        raise RecordFault("bad_record", "needs a list 'messages' of {role, content}")
    names = document.get("images")
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        names = record.image_members()
    turns: list[Turn] = []
    marks = 0
    for row in rows:
        role, pieces = _message(row)
        content: list[str | int] = []
        for piece in pieces:
            if piece is None:
                content.append(marks)
                marks += 1
            elif piece:
                content.append(piece)
        turns.append(Turn(role=role, content=tuple(content)))
    if marks != len(names):
        raise RecordFault("image_count", f"{marks} {IMAGE_MARK} marks but {len(names)} images")
    return tuple(turns), [record.image(name) for name in names]


def _message(row: object) -> tuple[Role, list[str | None]]:
    """Role and content: texts, and None for each image."""
    if not isinstance(row, dict):
        raise RecordFault("bad_record", f"a message is a {type(row).__name__}, not an object")
    name, content = row.get("role", row.get("from")), row.get("content", row.get("value"))
    if not isinstance(name, str) or name not in _ROLES:
        raise RecordFault("bad_record", f"role {name!r} is none of {sorted(_ROLES)}")
    if isinstance(content, str):
        texts = content.split(IMAGE_MARK)
        return _ROLES[name], [p for text in texts for p in (None, text)][1:]
    if isinstance(content, list):
        return _ROLES[name], [_part(part, name=name) for part in content]
    raise RecordFault("bad_record", f"content of a {name} message is no text")


def _part(part: object, *, name: str) -> str | None:
    """One of OpenAI's parts: its text, or None for an image."""
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind in ("image", "image_url"):
        return None
    raise RecordFault(
        "bad_record",
        f"a part of a {name} message has type {kind!r}: expected text (with text), image or "
        "image_url",
    )


_PARSERS: dict[RecordKind, Callable[[_Record], _Parsed]] = {
    RecordKind.caption: _caption,
    RecordKind.text: _text,
    RecordKind.interleaved: _interleaved,
    RecordKind.conversation: _conversation,
}
