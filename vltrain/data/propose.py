"""What a source over some tars would have to say: kind, modality, field map and rule of keys.

In: shards. Out: the config that most of their first records can be read with, as YAML to paste.
Nothing is guessed from names alone: every candidate (its fields taken from the members that are
there) parses the records that were looked at, and the one that reads most of them wins, the
earlier one where two read as many. Costs the first few hundred records of up to three shards.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby, islice

from vltrain.batch import Modality, Origin, RecordKind, Sample
from vltrain.data.config import KeyRule
from vltrain.data.index import Member, NamedMembers, member_row
from vltrain.data.layout import INDEX_FOLDER, Shard, is_image_extension, is_url
from vltrain.data.records import parse_record
from vltrain.data.remote import RemoteStore
from vltrain.data.shardfile import Bytes, viewed
from vltrain.data.tarscan import scan_tar
from vltrain.errors import RecordFault

LOOKED_AT_SHARDS = 3
LOOKED_AT_RECORDS = 100
"""Of each shard."""
LOOKED_AT_MEMBERS = 2000
"""Of each shard: under the wrong rule of keys a whole shard may be one record."""
MOST_CANDIDATES = 24
"""Of one rule of keys; each parses every record that is looked at."""
_TEXTS_FIRST = ("txt", "text", "caption", "cap", "md")
_JSON_TEXTS_FIRST = ("caption", "text", "content", "raw_content")
_PLAIN_PATH = re.compile(r"(?:\w+://)?[\w./][\w ./{},*~+-]*[\w./{},*~+-]")
"""What YAML takes as it is."""
_JSON_TOKENS_FIRST = ("input_ids", "tokens", "token_ids", "ids")


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """A config that fits. fits, looked_at: records. modalities: of the records that fit."""

    kind: RecordKind
    keys: KeyRule
    modalities: tuple[Modality, ...]
    fields: dict[str, str] = field(default_factory=dict)
    fits: int
    looked_at: int

    def yaml(self, *, name: str, path: str) -> str:
        """The lines to put under ``sources:`` of a data config; one source for each modality."""
        lines = []
        for modality in self.modalities:
            own = name if modality is self.modalities[0] else f"{name}_{modality.value}"
            where = f"  path: {path if _PLAIN_PATH.fullmatch(path) else json.dumps(path)}"
            lines += [f"{own}:", where, f"  kind: {self.kind.value}"]
            if is_url(path):
                lines.append(f"  index_dir: {INDEX_FOLDER}/{name}  # any local folder")
            lines.append(f"  modality: {modality.value}")
            if self.fields:
                pairs = ", ".join(f"{k}: {_quoted(v)}" for k, v in self.fields.items())
                lines.append(f"  fields: {{{pairs}}}")
            if self.keys is not KeyRule.first_dot:
                lines.append(f"  keys: {self.keys.value}")
        return "\n".join(f"  {line}" for line in lines)


def _quoted(place: str) -> str:
    return json.dumps(place) if ":" in place else place


@dataclass(frozen=True, slots=True)
class _Record:
    """Members of a record that is looked at, and how to read them."""

    members: tuple[Member, ...]
    read: Callable[[Member], bytes]


def propose_source(
    shards: Sequence[Shard], *, remote: RemoteStore | None = None
) -> Proposal | None:
    """The config that reads most of the first records of the shards; None where none reads any.
    Raises DataError where a shard is no plain tar or cannot be read."""
    best: Proposal | None = None
    with ExitStack() as stack:
        maps = [
            stack.enter_context(viewed(shard, remote=remote)) for shard in shards[:LOOKED_AT_SHARDS]
        ]
        for keys in KeyRule:
            records = [
                record
                for shard, data in zip(shards, maps, strict=False)
                for record in islice(_records(data, shard, keys), LOOKED_AT_RECORDS)
            ]
            for kind, fields in islice(_candidates(records), MOST_CANDIDATES):
                found = _tried(records, kind=kind, fields=fields, keys=keys)
                if found.fits and (best is None or _merit(found) > _merit(best)):
                    best = found
    return best


def _merit(proposal: Proposal) -> tuple[float, int]:
    """Share that fits, then records: an archive of one record under the wrong rule fits too."""
    return proposal.fits / proposal.looked_at, proposal.fits


def _records(data: Bytes, shard: Shard, keys: KeyRule) -> Iterator[_Record]:
    def read(member: Member) -> bytes:
        return data[member.offset : member.offset + member.size]

    named = NamedMembers(scan_tar(data, shard=shard), keys=keys)
    looked_at = islice(named, LOOKED_AT_MEMBERS)
    for _, group in groupby(looked_at, key=lambda item: item[0]):
        members = [
            member_row(extension, member, data[member.offset : member.offset + member.size])
            for _, extension, member in group
        ]
        yield _Record(tuple(members), read)


def _candidates(records: Sequence[_Record]) -> Iterator[tuple[RecordKind, dict[str, str]]]:
    """Kinds with their field maps, the likeliest first."""
    extensions = Counter(m.extension for record in records for m in record.members)
    # What few records have is no field of the source.
    common = [e for e, count in extensions.most_common() if count * 2 >= len(records)]
    images = sorted({e for e in common if is_image_extension(e)})
    documents = [e for e in common if e.rpartition(".")[2] == "json"]
    arrays = [e for e in common if e.rpartition(".")[2] == "npy"]
    texts = [e for e in common if e not in (*images, *documents, *arrays)]
    texts.sort(key=lambda e: _rank(e.rpartition(".")[2], _TEXTS_FIRST))
    for extension in documents:
        named = {} if extension == "json" else {"json": extension}
        yield RecordKind.conversation, named
        yield RecordKind.interleaved, named
    inside = [
        (kind, f"{extension}:{key}")
        for extension in documents
        for kind, key in _json_keys(records, extension)
    ]
    places = texts + [place for kind, place in inside if kind is str]
    picked: list[dict[str, str]] = [{}, *({"image": e} for e in images)]
    if any(is_image_extension(e) for e in extensions):
        for place in places:
            for image in picked:
                yield RecordKind.caption, {**image, **_text_field(place)}
    for place in arrays + [place for kind, place in inside if kind is list]:
        yield RecordKind.text, {"tokens": place}
    for place in places:
        yield RecordKind.text, _text_field(place)


def _text_field(place: str) -> dict[str, str]:
    return {} if place == "txt" else {"text": place}


def _json_keys(records: Sequence[_Record], extension: str) -> list[tuple[type, str]]:
    """Keys of the first whole JSON object that hold a text or a list of numbers."""
    for record in records:
        for member in record.members:
            if member.extension != extension:
                continue
            try:
                document = json.loads(record.read(member))
            except (ValueError, RecursionError):
                break
            if not isinstance(document, dict):
                break
            texts = [k for k, v in document.items() if _is_prose(k, v)]
            numbers = [k for k, v in document.items() if isinstance(v, list) and _are_ids(v)]
            texts.sort(key=lambda k: _rank(k, _JSON_TEXTS_FIRST))
            numbers.sort(key=lambda k: _rank(k, _JSON_TOKENS_FIRST))
            found: list[tuple[type, str]] = [(list, k) for k in numbers]
            return found + [(str, k) for k in texts]
    return []


def _is_prose(key: str, value: object) -> bool:
    """Not a URL, an id or a status."""
    return isinstance(value, str) and (key in _JSON_TEXTS_FIRST or " " in value.strip())


def _are_ids(values: list[object]) -> bool:
    return bool(values) and all(type(value) is int for value in values)


def _rank(name: str, first: tuple[str, ...]) -> int:
    return first.index(name) if name in first else len(first)


def _tried(
    records: Sequence[_Record], *, kind: RecordKind, fields: dict[str, str], keys: KeyRule
) -> Proposal:
    read: list[Sample] = []
    for record in records:
        if kind is RecordKind.text and any(is_image_extension(m.extension) for m in record.members):
            continue  # it could be read, without its images
        try:
            read.append(
                parse_record(
                    record.members,
                    origin=Origin(source="", shard="", key=""),
                    kind=kind,
                    fields=fields,
                    read=record.read,
                )
            )
        except RecordFault:
            continue  # it is what is counted
    found = {Modality.multimodal if sample.images else Modality.language for sample in read}
    return Proposal(
        kind=kind,
        keys=keys,
        modalities=tuple(sorted(found, key=lambda m: m is Modality.language)),
        fields=fields,
        fits=len(read),
        looked_at=len(records),
    )
