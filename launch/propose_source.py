"""What a source over a folder of tars would have to say: python launch/propose_source.py PATH
[NAME]

Looks at the first records of up to three shards and prints YAML to put under ``sources:`` of a
file in conf/data/. PATH is a folder of .tar shards, one .tar, a pattern, or a URL (braces allowed)
that fsspec reads; of shards behind a URL only the first megabytes are fetched. Nothing is written.
Exit codes: 0; 2 where nothing fits, a shard is no plain tar or a store does not answer.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from command_line import with_clean_errors

from vltrain.data.config import RemoteConfig
from vltrain.data.layout import find_shards, is_url
from vltrain.data.propose import Proposal, propose_source
from vltrain.data.remote import RemoteStore, named_shards
from vltrain.errors import DataError


def main() -> None:
    """Find shards, try what fits, print it."""
    parser = argparse.ArgumentParser(description="Propose a source for some tars, as YAML.")
    parser.add_argument("path", metavar="PATH", help="a folder of tars, a tar, a pattern or a URL")
    parser.add_argument("name", metavar="NAME", nargs="?", help="of the source")
    given = parser.parse_args()
    path, name = given.path, given.name or _name(given.path)
    proposal = _proposed(name, path)
    if proposal is None:
        raise DataError(
            f"no kind reads the first records of {path}; docs/data.md lists what the four kinds "
            "need. Write the shards anew with a data recipe"
        )
    print(f"# reads {proposal.fits} of the first {proposal.looked_at} records")
    print("sources:")
    print(proposal.yaml(name=name, path=path))


def _proposed(name: str, path: str) -> Proposal | None:
    if not is_url(path):
        return propose_source(find_shards(name, path))
    with TemporaryDirectory() as cache:
        # A URL that somebody types is one that they allow.
        config = RemoteConfig(schemes=[path.partition("://")[0]], cache_dir=cache, read_ahead=0)
        return propose_source(named_shards(path, where=path), remote=RemoteStore(config))


def _name(path: str) -> str:
    """A name for the source: the folder's or the tar's, without digits of a pattern. One that
    begins with a digit would be a number in YAML."""
    stem = re.sub(r"\W+", "_", re.sub(r"\{.*?\}|\.tar$|\*", "", Path(path).name)).strip("_")
    return stem.lower() if stem[:1].isalpha() else f"source_{stem}".strip("_")


if __name__ == "__main__":
    with_clean_errors(main)
