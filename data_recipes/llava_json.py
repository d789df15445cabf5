"""LLaVA-style JSON, the most common form of visual instruction data, read through ``datasets``.

In: ``.json`` or ``.jsonl`` files whose rows are ``{"id", "image": name | [names] | null,
"conversations": [{"from": "human" | "gpt" | "system", "value": "<image>\\n..."}]}``, and the
folder that the image names are relative to. Out: conversation records with the image files' own
bytes. Reads local files only; the Arrow copy that ``datasets`` makes lies in ``cache_dir`` (by
default a temporary folder, removed at the end).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from vltrain.data.layout import IMAGE_EXTENSIONS
from vltrain.data.writer import ShardRecord
from vltrain.errors import DataError

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_ROLES["system"] = "system"


def records(
    data_files: Sequence[Path],
    *,
    image_folder: Path | None,
    limit: int | None = None,
    cache_dir: Path | None = None,
) -> Iterator[ShardRecord]:
    """One record per row, in file order.

    Raises DataError for a missing file, a row without conversations, an unknown speaker, an image
    that is not in ``image_folder`` or a number of ``<image>`` marks other than the number of
    images.
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
    if not row.get("conversations"):
        raise DataError(f"{where}: no 'conversations'; found the fields {sorted(row)}")
    messages = []
    for turn in row["conversations"]:
        if turn.get("from") not in _ROLES:
            raise DataError(
                f"{where}: speaker {turn.get('from')!r}; expected one of {sorted(_ROLES)}"
            )
        messages.append({"role": _ROLES[turn["from"]], "content": turn["value"]})
    images = row.get("image") or []
    names = [images] if isinstance(images, str) else list(images)
    marks = sum(message["content"].count("<image>") for message in messages)
    if marks != len(names):
        raise DataError(f"{where}: {marks} <image> marks but {len(names)} images")
    members: dict[str, Any] = {"json": {"messages": messages}}
    for index, name in enumerate(names):
        path = (image_folder or Path()) / name
        extension = path.suffix.lower().lstrip(".")
        if extension not in IMAGE_EXTENSIONS or not path.is_file():
            raise DataError(f"{where}: {path} is not an image file; check the image folder")
        members[f"{index}.{extension}"] = path.read_bytes()
    return ShardRecord(key=key, members=members)
