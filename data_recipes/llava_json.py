"""Conversations as JSON, the most common form of visual instruction data, read through
``datasets``: LLaVA's and ShareGPT's rows, and OpenAI's.

In: ``.json`` or ``.jsonl`` files, and the folder that the image names are relative to. A row has
turns, ``"conversations": [{"from": "human" | "gpt" | "system", "value": "<image>\\n..."}]`` or
``"messages": [{"role": "user" | "assistant" | "system", "content": "..."}]``, and its images'
names, ``"image"`` or ``"images"``. A content may be a list of parts: ``{"type": "text", "text"}``,
in which ``<image>`` is a word like any other, and ``{"type": "image_url", "image_url": {"url"}}``
or ``{"type": "image", "image"}``, which name a file of the folder or hold a ``data:`` URL; one that
names nothing takes the row's next image, as an ``<image>`` does.

Out: conversation records with the image files' own bytes. Reads local files only; the Arrow copy
that ``datasets`` makes lies in ``cache_dir`` (by default a temporary folder, removed at the end).
"""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from vltrain.data.layout import IMAGE_EXTENSIONS
from vltrain.data.writer import ShardRecord
from vltrain.errors import DataError

MARK = "<image>"
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_ROLES["system"] = "system"
_INLINE = re.compile(r"data:image/([a-z0-9.+-]+);base64,(.*)", re.DOTALL | re.IGNORECASE)


def records(
    data_files: Sequence[Path],
    *,
    image_folder: Path | None,
    limit: int | None = None,
    cache_dir: Path | None = None,
) -> Iterator[ShardRecord]:
    """One record per row, in file order.

    Raises DataError for a missing file, a row without turns, an unknown speaker, a content that is
    neither text nor parts, an image that is not in ``image_folder`` (or on another machine) or a
    number of marks other than the number of images.
    """
    import datasets  # here: it takes seconds, and most runs of make_data do not need it

    missing = [str(path) for path in data_files if not path.is_file()]
    if missing or not data_files:
        raise DataError(
            f"no such LLaVA-style JSON file: {', '.join(missing) or '(none was given)'}"
        )
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="llava-json-") as temporary:
        rows = datasets.load_dataset(
            "json",
            data_files=[str(path) for path in data_files],
            split="train",
            cache_dir=str(cache_dir or temporary),
        )
        for number, row in enumerate(islice(rows, limit)):
            yield _record(dict(row), number=number, image_folder=image_folder)


def _record(row: dict[str, Any], *, number: int, image_folder: Path | None) -> ShardRecord:
    where = f"row {number} (id {row.get('id')!r})"
    key = str(row.get("id") or f"row-{number:09d}").replace(".", "-").replace("/", "-")
    turns = row.get("messages") or row.get("conversations")
    if not turns:
        raise DataError(
            f"{where}: no 'messages' and no 'conversations'; found the fields {sorted(row)}"
        )
    messages, placed = [], []
    for turn in turns:
        speaker = turn.get("role") or turn.get("from")
        if speaker not in _ROLES:
            raise DataError(f"{where}: speaker {speaker!r}; expected one of {sorted(_ROLES)}")
        said = turn["content"] if turn.get("content") is not None else turn.get("value")
        content, images = _content(said, where=f"{where}, {speaker}")
        messages.append({"role": _ROLES[speaker], "content": content})
        placed += images
    members: dict[str, Any] = {"json": {"messages": messages}}
    for index, name in enumerate(_names(placed, row=row, where=where)):
        extension, data = _image(name, where=where, image_folder=image_folder)
        members[f"{index}.{extension}"] = data
    return ShardRecord(key=key, members=members)


def _content(said: object, *, where: str) -> tuple[str | list[dict[str, str]], list[str | None]]:
    """What is written of a turn, and its images in order: a name, or None for the row's next."""
    if isinstance(said, str):
        return said, [None] * said.count(MARK)
    if not isinstance(said, list):
        raise DataError(
            f"{where}: the content is a {type(said).__name__}; expected text or a list of parts"
        )
    parts: list[dict[str, str]] = []
    images: list[str | None] = []
    for part in said:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
        elif kind in ("image", "image_url"):
            parts.append({"type": "image"})
            images.append(_own_name(part[kind]) if part.get(kind) else None)
        else:
            raise DataError(
                f"{where}: a part of type {kind!r}; expected text (with text), image or image_url"
            )
    return parts, images


def _own_name(named: object) -> str | None:
    """Of ``"a.png"`` and of ``{"url": "a.png"}``."""
    name = named.get("url") if isinstance(named, dict) else named
    return name if isinstance(name, str) and name else None


def _names(placed: Sequence[str | None], *, row: dict[str, Any], where: str) -> list[str]:
    """The name of every placed image; the row's own names stand where none is said."""
    stated = row.get("images") or row.get("image") or []
    stated = [stated] if isinstance(stated, str) else list(stated)
    marks = placed.count(None)
    if marks != len(stated):
        raise DataError(f"{where}: {marks} {MARK} marks but {len(stated)} images")
    following = iter(stated)
    return [next(following) if name is None else name for name in placed]


def _image(name: str, *, where: str, image_folder: Path | None) -> tuple[str, bytes]:
    """Extension and bytes of a file of the folder, or of a ``data:`` URL."""
    inline = _INLINE.fullmatch(name)
    if inline is not None and inline[1].lower() in IMAGE_EXTENSIONS:
        try:
            return inline[1].lower(), base64.b64decode(inline[2], validate=True)
        except binascii.Error as error:
            raise DataError(f"{where}: a data: URL that is no base64: {error}") from error
    if "://" in name or name.startswith("data:"):
        raise DataError(
            f"{where}: {name[:80]} is no local image; fetch it into the image folder and name the "
            "file (a data: URL must hold base64 of an image)"
        )
    path = (image_folder or Path()) / name
    extension = path.suffix.lower().lstrip(".")
    if extension not in IMAGE_EXTENSIONS or not path.is_file():
        raise DataError(f"{where}: {path} is not an image file; check the image folder")
    return extension, path.read_bytes()
