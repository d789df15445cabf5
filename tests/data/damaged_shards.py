"""Shards in the formats that people have, with one record in a hundred damaged in every way that
its format knows."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from shard_makers import write_tar

from vltrain.batch import Modality, RecordKind
from vltrain.data.config import SourceConfig

RECORDS = 600
EACH = RECORDS // 100
Members = dict[str, bytes]
Damage = Callable[[Members, str], None]


def photo(mode: str = "RGB", *, form: str = "JPEG", size: tuple[int, int] = (64, 48)) -> bytes:
    noise = np.random.default_rng(7).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    if mode == "I;16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 256)
    elif mode != "RGB":
        image = image.convert(mode)
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


PHOTO = photo()


def bomb() -> bytes:
    """A PNG whose header says 60,000 x 60,000."""
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(bytes(1000)),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )


def js(content: object) -> bytes:
    return json.dumps(content).encode()


def put(data: bytes) -> Damage:
    def damage(members: Members, member: str) -> None:
        members[member] = data

    return damage


def drop(members: Members, member: str) -> None:
    del members[member]
    members["note"] = b"something of the record is left"


# name -> (what is done to the image, reason in prepare, reason when read); "" where it can be used
IMAGES: dict[str, tuple[Damage, str, str]] = {
    "truncated": (put(PHOTO[: len(PHOTO) * 6 // 10]), "", "truncated"),
    "bomb": (put(bomb()), "too_large", ""),
    "no_bytes": (put(b""), "not_an_image", ""),
    "web_page": (put(b"<html>404</html>"), "not_an_image", ""),
    "wrong_extension": (put(photo(form="PNG")), "", ""),
    "cmyk": (put(photo("CMYK")), "", ""),
    "grey16": (put(photo("I;16", form="PNG")), "", ""),
    "alpha": (put(photo("RGBA", form="PNG")), "", ""),
    "palette": (put(photo("P", form="GIF")), "", ""),
    "tall": (put(photo(size=(1, 4000))), "", ""),
    "wide": (put(photo(size=(4000, 1))), "", ""),
}
TEXTS: dict[str, tuple[Damage, str, str]] = {
    "bad_utf8": (put(b"a dog \xff\xfe"), "bad_text", ""),
    "no_text": (put(b""), "empty", ""),
    "missing_text": (drop, "missing_member", ""),
}
DOCUMENTS: dict[str, tuple[Damage, str, str]] = {
    "bad_json": (put(b'{"texts": ["a dog"'), "bad_json", ""),
    "bad_record": (put(b"[1]"), "bad_record", ""),
    "bad_utf8": (put(b'{"a": "\xff"}'), "bad_text", ""),
    "missing_json": (drop, "missing_member", ""),
}
TOKENS: dict[str, tuple[Damage, str, str]] = {
    "no_bytes": (put(b""), "bad_tokens", ""),
    "text": (put(b"1 2 3"), "bad_tokens", ""),
    "missing": (drop, "missing_member", ""),
}


def ids() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.arange(10, 20))
    return stream.getvalue()


SAID = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
INFO = [{"image_name": "a.jpg", "matched_text_index": 1}]
META = {"url": "http://x/1.jpg", "status": "success"}


@dataclass(frozen=True)
class Format:
    """members: of a whole record. damages: by the member that they are done to. missing_image: the
    reason of a record without its image."""

    kind: RecordKind
    members: Members
    damages: dict[str, dict[str, tuple[Damage, str, str]]]
    missing_image: str = ""
    fields: tuple[tuple[str, str], ...] = ()


def with_image(
    kind: RecordKind, image: str, members: Members, others: dict, *, missing: str
) -> Format:
    gone: dict[str, tuple[Damage, str, str]] = {"missing_image": (drop, missing, "")}
    return Format(
        kind=kind, members={image: PHOTO, **members}, damages={image: {**IMAGES, **gone}, **others}
    )


FORMATS: dict[str, Format] = {
    "img2dataset": with_image(
        RecordKind.caption,
        "JPG",
        {"txt": b"a dog", "json": js(META)},
        {"txt": TEXTS},
        missing="missing_member",
    ),
    "llava": with_image(
        RecordKind.conversation,
        "jpg",
        {"json": js({"image": "coco/1.jpg", "conversations": SAID})},
        {"json": DOCUMENTS},
        missing="image_count",
    ),
    "obelics": with_image(
        RecordKind.interleaved,
        "0.jpg",
        {"json": js({"texts": ["a dog", None], "images": [None, "http://x/1.jpg"]})},
        {"json": DOCUMENTS},
        missing="image_count",
    ),
    "mmc4": with_image(
        RecordKind.interleaved,
        "a.jpg",
        {"json": js({"text_list": ["One.", "Two."], "image_info": INFO})},
        {"json": DOCUMENTS},
        missing="missing_member",
    ),
    "text": Format(RecordKind.text, {"txt": b"a dog"}, {"txt": TEXTS}),
    "tokens": Format(RecordKind.text, {"npy": ids()}, {"npy": TOKENS}, fields=(("tokens", "npy"),)),
}


def write(name: str, folder: Path) -> tuple[SourceConfig, Counter[str], dict[str, str]]:
    """Two shards of a format: the source, how many prepare must exclude by reason, and the records
    (key -> reason) that must leave a hole when they are read."""
    chosen = FORMATS[name]
    excluded: Counter[str] = Counter()
    holes: dict[str, str] = {}
    damages = [
        (member, *damage) for member, found in chosen.damages.items() for damage in found.values()
    ] * EACH
    shards: list[list[tuple[str, bytes]]] = [[], []]
    for number in range(RECORDS):
        members = dict(chosen.members)
        key = f"part.0/{number:05d}"
        # Damage lies apart: 7 has no divisor in common with the number of records.
        place = number * 7 % RECORDS
        if place < len(damages):
            member, damage, in_prepare, when_read = damages[place]
            damage(members, member)
            if in_prepare:
                excluded[in_prepare] += 1
            if when_read:
                holes[key] = when_read
        shards[number % 2] += [(f"{key}.{ext}", data) for ext, data in members.items()]
    for number, shard in enumerate(shards):
        write_tar(folder / f"{number}.tar", shard)
    multimodal = chosen.kind is not RecordKind.text
    config = SourceConfig(
        path=str(folder),
        kind=chosen.kind,
        modality=Modality.multimodal if multimodal else Modality.language,
        fields=dict(chosen.fields),
    )
    return config, excluded, holes
