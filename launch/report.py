"""Draw what runs did: python launch/report.py RUN_OR_FOLDER ... [--title T]

Writes report.html and overview.png into the first folder named, from the runs' own files alone, and
prints the table of held-out results.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from command_line import with_clean_errors

from vltrain.errors import DataError
from vltrain.evaluate.report import write_report
from vltrain.evaluate.run_view import find_runs
from vltrain.runconfig import from_file

NOTES = "notes.txt"


def main() -> None:
    """Find the runs, write both files, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="run directories, or folders of runs")
    parser.add_argument("--title", default="vltrain: three stages")
    words = parser.parse_args()
    runs = [run for folder in words.folders for run in find_runs(folder)]
    if not runs:
        raise DataError(f"no run in {', '.join(map(str, words.folders))}: train one first")
    html, picture = words.folders[0] / "report.html", words.folders[0] / "overview.png"
    notes = [
        line
        for folder in words.folders
        if (folder / NOTES).is_file()
        for line in (folder / NOTES).read_text(encoding="utf-8").splitlines()
    ]
    table = write_report(
        runs,
        html=html,
        picture=picture,
        title=words.title,
        card_folders=_card_folders(runs),
        notes=notes,
    )
    print(table)
    print(f"\n{html}\n{picture}")


def _card_folders(runs: list[Path]) -> list[Path]:
    """Folders of every source that some run read."""
    folders: dict[Path, None] = {}
    for run in runs:
        if (run / "config.yaml").is_file():
            data = from_file(run / "config.yaml").data
            for source in [*data.sources.values(), *data.held_out.values()]:
                folders[Path(source.path)] = None
    return list(folders)


if __name__ == "__main__":
    with_clean_errors(main)
