"""Names and places: which files a source means, where its index lies, how a member's name is
read.

In: a source's ``path`` and ``index_dir``. Out: sorted shard paths and the paths of index and
token tables. Costs a directory listing. Pure naming otherwise: nothing here opens a shard. Member
names are split as webdataset splits them (at the first dot of the base name, extension in lower
case), so that a key means the same here as in any other tool, unless the source says otherwise.
"""

from __future__ import annotations

import glob
from dataclasses import dataclass
from itertools import product
from pathlib import Path, PurePosixPath

from vltrain.data.config import KeyRule
from vltrain.errors import DataError

INDEX_SCHEMA = 2
TABLE_SCHEMA = 1
CARD_SCHEMA = 1

INDEX_FOLDER = ".vltrain"
CATALOG_NAME = "catalog.json"
CARD_NAME = "card.json"

IMAGE_EXTENSIONS = frozenset(
    {"png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"}
)
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")

PREPARE_COMMAND = "python launch/prepare.py <the same overrides as train>"


@dataclass(frozen=True, order=True, slots=True)
class RemoteShard:
    """A shard behind a URL."""

    url: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.url).name

    def resolve(self) -> RemoteShard:
        """Itself: a URL has one spelling."""
        return self

    def __str__(self) -> str:
        return self.url


Shard = Path | RemoteShard


def is_url(path: str) -> bool:
    """``s3://bucket/x.tar`` is; ``/shards/x.tar`` is not."""
    return "://" in path


def split_member(name: str, *, keys: KeyRule) -> tuple[str, str] | None:
    """``a/b.0.PNG`` -> ("a/b", "0.png"); None for a name without key or extension."""
    folder, slash, base = name.rpartition("/")
    if keys is KeyRule.first_dot:
        stem, dot, extension = base.partition(".")
    else:
        stem, dot, extension = base.rpartition(".")
        before, numbered, number = stem.rpartition(".")
        is_number = bool(before and numbered) and number.isdecimal()
        if keys is KeyRule.image_number and is_number and is_image_extension(extension.lower()):
            stem, extension = before, f"{number}.{extension}"
    if not stem or not dot:
        return None
    return folder + slash + stem, extension.lower()


def is_meta_member(name: str) -> bool:
    """``__something__`` at the top of a tar: webdataset skips these, and so do we."""
    top, _, rest = name.partition("/")
    return len(top) > 4 and top.startswith("__") and top.endswith("__") and not rest


def is_image_extension(extension: str) -> bool:
    """``png`` and ``0.png`` are; ``txt`` is not."""
    return extension.rpartition(".")[2] in IMAGE_EXTENSIONS


def image_order(extension: str) -> tuple[int, str]:
    """Sort key of a sample's image members: a bare ``png`` first, then by number (2 before
    10)."""
    number, dot, _ = extension.partition(".")
    return (int(number), extension) if dot and number.isdecimal() else (-1, extension)


def expand_braces(pattern: str) -> list[str]:
    """``x-{000..002}.tar`` and ``{a,b}.tar`` -> every name meant, in the order written."""
    parts: list[list[str]] = []
    rest = pattern
    while "{" in rest:
        before, _, tail = rest.partition("{")
        inside, closed, rest = tail.partition("}")
        if not closed:
            raise DataError(f"shard pattern {pattern!r} has an open brace without its end")
        parts += [[before], _choices(inside, pattern)]
    parts.append([rest])
    return ["".join(choice) for choice in product(*parts)]


def _choices(inside: str, pattern: str) -> list[str]:
    first, dots, last = inside.partition("..")
    if not dots:
        return inside.split(",")
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise DataError(
            f"shard pattern {pattern!r}: {{{inside}}} is no range of numbers such as "
            f"{{000000..000003}}"
        )
    width = len(first) if first.startswith("0") else 0
    return [str(number).zfill(width) for number in range(int(first), int(last) + 1)]


def find_shards(source: str, path: str) -> list[Path]:
    """The shards that ``path`` means: a folder's ``*.tar``, one tar, or a pattern; sorted by
    path.

    Raises DataError (what was looked for, where, remedy) when nothing or less than what is named
    is there, for links to files that are gone, for names that are not UTF-8, and for compressed
    tars, which cannot be read at known offsets.
    """
    names = expand_braces(path)
    if len(names) == 1 and Path(path).is_dir():
        found = sorted(entry for entry in Path(path).iterdir() if not entry.is_dir())
        compressed = [entry for entry in found if entry.name.lower().endswith(COMPRESSED_SUFFIXES)]
        shards = [entry for entry in found if entry.name.lower().endswith(".tar")]
    else:
        shards, missing = [], []
        for name in names:
            hits = [name] if Path(name).is_file() else glob.glob(name)
            shards += [Path(hit) for hit in sorted(hits)]
            missing += [name] * (not hits)
        compressed = [entry for entry in shards if entry.name.lower().endswith(COMPRESSED_SUFFIXES)]
        if missing:
            raise DataError(_missing_message(source, path, missing, expected=len(names)))
    if compressed:
        raise DataError(compressed_message(compressed[0], source=source))
    if not shards:
        raise DataError(_missing_message(source, path, [f"{path}/*.tar"], expected=1))
    for shard in shards:
        if not shard.is_file():
            what = "a folder" if shard.is_dir() else "a link to a file that is gone"
            raise DataError(
                f"source {source!r}: {shard} is {what}; mend or remove it, or correct the source's "
                "path: what is named is never passed over"
            )
        try:
            shard.name.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"source {source!r}: the name of the shard {str(shard)!r} is not UTF-8, so no "
                "record of it can be written down; give the file another name"
            ) from error
    unique = {shard.resolve() for shard in shards}
    if len(unique) != len(shards):
        raise DataError(f"source {source!r}: {path} names a shard twice; name each shard once")
    return sorted(shards)


def _missing_message(source: str, path: str, missing: list[str], *, expected: int) -> str:
    shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    return (
        f"source {source!r}: {len(missing)} of {expected} shard names match no file: {shown} "
        f"(looked in {Path.cwd()}). Check path={path} of {source} under data.sources or "
        f"data.held_out, or write the shards first with the data recipe of this source"
    )


def compressed_message(shard: Shard, *, source: str | None = None) -> str:
    """The refusal of a compressed tar, with the command that mends it."""
    where = f"source {source!r}: " if source else ""
    return (
        f"{where}{shard} is compressed; samples are read at known offsets, so shards must be "
        f"plain tars. Unpack it next to itself and move the compressed file away: gunzip -k "
        f"{shard} (bunzip2, unxz, unzstd for the other kinds)"
    )


def index_folder(shard: Shard, index_dir: str | None) -> Path:
    """Where the index and token tables of a shard lie."""
    if index_dir is not None:
        return Path(index_dir)
    assert isinstance(shard, Path), f"{shard}: a remote source has an index_dir"
    return shard.parent / INDEX_FOLDER


def index_path(shard: Shard, index_dir: str | None) -> Path:
    return index_folder(shard, index_dir) / f"{shard.name}.index.arrow"


def table_folder(folder: Path, key: str) -> Path:
    """Folder of the token tables that one encoder (and record kind) made."""
    return folder / f"tokens-{key}"


def table_path(shard: Shard, index_dir: str | None, key: str) -> Path:
    return table_folder(index_folder(shard, index_dir), key) / f"{shard.name}.tokens.arrow"
