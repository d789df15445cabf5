"""Write data sets as webdataset shards: ``python launch/make_data.py demo data/demo``.

With ``boxes`` in place of ``demo``: pictures of figures, and where in them these are. Every set
that is already there with the same card is left alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from command_line import with_clean_errors

from data_recipes.demo import BOXES, RECIPES, write_demo
from data_recipes.write import Recipe

GROUPS: dict[str, tuple[tuple[Recipe, ...], str]] = {
    "demo": (RECIPES, "the demo's data sets, from installed packages' files"),
    "boxes": (BOXES, "easy-VQA's figures and where they are, for +experiment=demo_vl2_boxes"),
}


def main() -> None:
    """Write the sets that are asked for, a line for each."""
    arguments = _parser().parse_args()
    recipes, _ = GROUPS[arguments.command]
    _write(arguments.directory, among=recipes, only=arguments.only, limit=arguments.limit)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, words) in GROUPS.items():
        group = commands.add_parser(name, help=words)
        group.add_argument("directory", type=Path, help="where to write, such as data/demo")
        group.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these sets")
        group.add_argument("--limit", type=int, help="at most so many records of each split")
    return parser


def _write(directory: Path, *, among: Sequence[Recipe], only: list[str], limit: int | None) -> None:
    begin = since = time.monotonic()
    total_bytes = 0
    for written in write_demo(directory, among=among, only=only, limit=limit):
        counts = ", ".join(f"{split.value} {n}" for split, n in written.samples.items())
        seconds, since = time.monotonic() - since, time.monotonic()
        total_bytes += written.size_bytes
        state = f"{seconds:5.1f} s" if written.changed else "unchanged"
        label = " (synthetic)" if written.card.synthetic else ""
        name = written.card.name + label
        print(f"{name:<30} {counts:<30} {written.size_bytes / 1e6:6.1f} MB  {state}", flush=True)
    print(
        f"{directory}: {total_bytes / 1e6:.0f} MB in {time.monotonic() - begin:.0f} s", flush=True
    )


if __name__ == "__main__":
    with_clean_errors(main)
