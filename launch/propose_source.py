"""What a source over a folder of tars would have to say: python launch/propose_source.py PATH
[NAME]

Looks at the first records of up to three shards and prints YAML to put under ``sources:`` of a
file in conf/data/. PATH is a folder of .tar shards, one .tar, or a pattern. Nothing is written.
Exit codes: 0; 2 where nothing fits or a shard is no plain tar.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from command_line import with_clean_errors

from vltrain.data.layout import find_shards
from vltrain.data.propose import propose_source
from vltrain.errors import ConfigError, DataError


def main() -> None:
    """Find shards, try what fits, print it."""
    if not 2 <= len(sys.argv) <= 3:
        raise ConfigError("which shards? python launch/propose_source.py PATH [NAME]")
    path = sys.argv[1]
    name = sys.argv[2] if len(sys.argv) == 3 else _name(path)
    proposal = propose_source(find_shards(name, path))
    if proposal is None:
        raise DataError(
            f"no kind reads the first records of {path}; docs/data.md lists what the four kinds "
            "need. Write the shards anew with a data recipe"
        )
    print(f"# reads {proposal.fits} of the first {proposal.looked_at} records")
    print("sources:")
    print(proposal.yaml(name=name, path=path))


def _name(path: str) -> str:
    """A name for the source: the folder's or the tar's, without digits of a pattern."""
    stem = re.sub(r"\W+", "_", re.sub(r"\{.*?\}|\.tar$|\*", "", Path(path).name)).strip("_")
    return stem.lower() or "source"


if __name__ == "__main__":
    with_clean_errors(main)
