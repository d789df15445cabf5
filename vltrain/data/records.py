"""What the members of a record mean: members and a field map become a Sample.

In: the members of one webdataset key, the source's kind and field map, and a way to read a
member. Out: a Sample whose images carry their size but no bytes (token counts need none; the
reader adds the bytes that a piece needs). Costs one read of the text member. A record that cannot
be used raises RecordFault.

The four kinds, in our own layout: caption ``<key>.<image>`` and ``<key>.txt``; text
``<key>.txt``; interleaved ``<key>.json`` {"texts": [str|null, ...], "images": [null|"0.png",
...]}; conversation ``<key>.json`` {"messages": [{"role", "content"}, ...]} (see ``messages``).
Read too: LLaVA's {"conversations": [{"from", "value"}, ...]}; MMC4's {"text_list":
[...], "image_info": [{"image_name", "matched_text_index"}, ...]}, each image before the text that
it matches; names of images that are no members but URLs or paths (OBELICS), which stand for the
image members in their order; text that is token ids already (``tokens``: a .npy of integers, or a
list in a JSON member).
"""

from __future__ import annotations

import io
import json
import tokenize
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vltrain.batch import Origin, Part, RecordKind, Role, Sample, StoredImage, Turn
from vltrain.data.index import Member
from vltrain.data.layout import image_order, is_image_extension
from vltrain.data.messages import IMAGE_MARK, parse_message
from vltrain.errors import ConfigError, RecordFault

FIELDS = {
    RecordKind.caption: ("image", "text"),
    RecordKind.text: ("text", "tokens"),
    RecordKind.interleaved: ("json",),
    RecordKind.conversation: ("json", "image"),
}
_DEFAULT_EXTENSION = {"text": "txt", "json": "json"}
_INSIDE_JSON = ("text", "tokens")
"""Fields that may name a value inside a JSON member, as EXTENSION:KEY or EXTENSION:KEY.KEY."""
_NOT_NPY = (
    *(ValueError, EOFError, OSError, MemoryError),
    *(SyntaxError, TypeError, tokenize.TokenError),  # of a header, which numpy reads as Python
)


def check_fields(source: str, *, kind: RecordKind, fields: Mapping[str, str]) -> None:
    """Raise ConfigError for a field that the kind does not have."""
    unknown = sorted(set(fields) - set(FIELDS[kind]))
    if unknown:
        raise ConfigError(
            f"source {source!r}: fields {unknown} unknown for kind {kind.value}; it has "
            f"{list(FIELDS[kind])}"
        )
    for field, place in fields.items():
        if ":" in place and field not in _INSIDE_JSON:
            raise ConfigError(
                f"source {source!r}: fields.{field}={place}: only {' and '.join(_INSIDE_JSON)} can "
                "be a value inside a JSON member; name a member's extension"
            )
    if "text" in fields and "tokens" in fields:
        raise ConfigError(
            f"source {source!r}: fields names text and tokens; a record is one of the two"
        )


def parse_record(
    members: Sequence[Member],
    *,
    origin: Origin,
    kind: RecordKind,
    fields: Mapping[str, str],
    read: Callable[[Member], bytes],
) -> Sample:
    """The Sample that the members make. Raises RecordFault (missing_member, ambiguous,
    duplicate_member, bad_text, bad_json, bad_record, bad_tokens, empty, image_count, or the fault
    of an image that it needs)."""
    by_name = {member.extension: member for member in members}
    if len(by_name) != len(members):
        raise RecordFault("duplicate_member", f"members {[m.extension for m in members]}")
    record = _Record(by_name, fields=fields, read=read)
    if "tokens" in fields:
        ids = record.tokens()
        return Sample(origin=origin, kind=kind, turns=(), images=(), token_ids=ids)
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
        place = self._fields.get(field, _DEFAULT_EXTENSION[field])
        extension, inside, path = place.partition(":")
        if not inside:
            return self._member_text(extension.lower())
        text = self._value(extension.lower(), path)
        if not isinstance(text, str):
            raise RecordFault("bad_record", f"{place} is a {type(text).__name__}, not a text")
        if not text.strip():
            raise RecordFault("empty", f"{place} holds no text")
        return text

    def tokens(self) -> tuple[int, ...]:
        """The token ids of the field ``tokens``."""
        place = self._fields["tokens"]
        extension, inside, path = place.partition(":")
        if inside:
            ids = self._value(extension.lower(), path)
        else:
            try:
                data = io.BytesIO(self._read(self.member(extension.lower())))
                ids = np.lib.format.read_array(data).tolist()  # never unpickles
            except _NOT_NPY as error:
                raise RecordFault("bad_tokens", f".{extension} is no .npy: {error}") from error
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < 2**31 for i in ids):
            raise RecordFault("bad_tokens", f"{place} is no list of token ids")
        if not ids:
            raise RecordFault("empty", f"{place} holds no token")
        return tuple(ids)

    def document(self) -> dict[str, Any]:
        """The JSON object of the record."""
        return self._json_object(self._fields.get("json", _DEFAULT_EXTENSION["json"]).lower())

    def _member_text(self, extension: str) -> str:
        member = self.member(extension)
        try:
            text = self._read(member).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise RecordFault("bad_text", f".{member.extension} is not UTF-8: {error}") from error
        if not text.strip():
            raise RecordFault("empty", f".{member.extension} holds no text")
        return text

    def _json_object(self, extension: str) -> dict[str, Any]:
        text = self._member_text(extension)
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

    def _value(self, extension: str, path: str) -> object:
        """What lies at KEY.KEY of a JSON member."""
        value: object = self._json_object(extension)
        for key in path.split("."):
            if not isinstance(value, dict) or key not in value:
                raise RecordFault("bad_record", f".{extension} has nothing at {path}")
            value = value[key]
        return value

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
            return [self.member(self._fields["image"].lower()).extension]
        return sorted(filter(is_image_extension, self._members), key=image_order)

    def named_images(self, names: Sequence[str]) -> list[StoredImage]:
        """Images by the names that a document gives them: members, or the last parts of paths, or,
        where these are no members either (URLs), the image members in their order."""
        if any("/" in name for name in names):
            names = [name.rpartition("/")[2] for name in names]
            members = self.image_members()
            if not any(name.lower() in self._members for name in names):
                if len(members) != len(names):
                    raise RecordFault(
                        "image_count",
                        f"{len(names)} images are named but {len(members)} are members",
                    )
                names = members
        return [self.image(name) for name in names]


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
    if "text_list" in document:
        content, names = _matched(document)
    else:
        content, names = _alternating(document)
    if not any(isinstance(part, str) and part.strip() for part in content):
        raise RecordFault("empty", "an interleaved document without text")
    return (Turn(role=Role.document, content=tuple(content)),), record.named_images(names)


def _alternating(document: dict[str, Any]) -> tuple[list[str | int], list[str]]:
    """Content and names of images of {"texts", "images"}: one of the two at every position."""
    texts, images = document.get("texts"), document.get("images")
    if not isinstance(texts, list) or not isinstance(images, list) or len(texts) != len(images):
        raise RecordFault("bad_record", "needs lists 'texts' and 'images' of equal length")
    content: list[str | int] = []
    names: list[str] = []
    for text, name in zip(texts, images, strict=True):
        if isinstance(text, str) and name is None:
            content.append(text)
        elif isinstance(name, str) and text is None:
            content.append(len(names))
            names.append(name)
        elif text is not None or name is not None:
            raise RecordFault("bad_record", f"position {len(content)}: one of text and image")
    return content, names


def _matched(document: dict[str, Any]) -> tuple[list[str | int], list[str]]:
    """The same of MMC4's {"text_list", "image_info"}: an image stands before its text."""
    texts, infos = document["text_list"], document.get("image_info")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RecordFault("bad_record", "text_list is no list of texts")
    before: dict[int, list[str]] = {}
    for info in infos if isinstance(infos, list) else [None]:
        name = info.get("image_name") if isinstance(info, dict) else None
        place = info.get("matched_text_index") if isinstance(info, dict) else None
        if not isinstance(name, str) or type(place) is not int or not 0 <= place < len(texts):
            raise RecordFault(
                "bad_record", "image_info needs image_name and matched_text_index in every row"
            )
        before.setdefault(place, []).append(name)
    content: list[str | int] = []
    names: list[str] = []
    for place, text in enumerate(texts):
        for name in before.get(place, []):
            content.append(len(names))
            names.append(name)
        # Sentences come without the blanks between them.
        content.append(text if place == len(texts) - 1 else text + " ")
    return content, names


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
        role, pieces = parse_message(row)
        content: list[Part] = []
        for piece in pieces:
            if piece is None:
                content.append(marks)
                marks += 1
            elif piece != "":
                content.append(piece)
        turns.append(Turn(role=role, content=tuple(content)))
    if marks != len(names):
        raise RecordFault("image_count", f"{marks} {IMAGE_MARK} marks but {len(names)} images")
    return tuple(turns), record.named_images(names)


_PARSERS: dict[RecordKind, Callable[[_Record], _Parsed]] = {
    RecordKind.caption: _caption,
    RecordKind.text: _text,
    RecordKind.interleaved: _interleaved,
    RecordKind.conversation: _conversation,
}
