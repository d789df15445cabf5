"""Leave out what turned out bad: python launch/exclude_records.py RUN_OR_LEDGER ... --out FOLDER

Turns the ledgers of runs into one list of records for each source, FOLDER/SOURCE.jsonl, and prints
the words that make prepare (and then train) leave them out. Run again with another ledger, it adds
to the lists. A list changes the recipe: a run that goes on with it is another run.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from command_line import with_clean_errors

from vltrain.data.exclusion import write_exclusions
from vltrain.errors import DataError


def main() -> None:
    """Read ledgers, write lists."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("ledgers", nargs="+", type=Path, metavar="RUN_OR_LEDGER")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    given = parser.parse_args()
    ledgers = [path / "ledger.jsonl" if path.is_dir() else path for path in given.ledgers]
    written = write_exclusions(ledgers, given.out)
    if not written:
        raise DataError(f"no record is listed in {', '.join(map(str, ledgers))}: nothing to do")
    for source, (path, records) in written.items():
        word = shlex.quote(f"data.sources.{source}.exclude={path}")
        print(f"{records} records of {source}: {word}")
    print("Put these words after the others, for launch/prepare.py first and then for train.")


if __name__ == "__main__":
    with_clean_errors(main)
