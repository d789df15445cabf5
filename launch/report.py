"""Draw what runs did: python launch/report.py RUN_OR_FOLDER ... [--title T]

Writes report.html and overview.png into the first folder named, from the runs' own files alone, and
prints the table of held-out results.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from command_line import with_clean_errors

from vltrain.errors import DataError
from vltrain.evaluate.report import write_report
from vltrain.evaluate.results import Point
from vltrain.evaluate.run_view import find_runs, first_evaluated, read_runs
from vltrain.runconfig import from_file

NOTES = "notes.txt"


def main() -> None:
    """Find the runs, write both files, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="run directories, or folders of runs")
    parser.add_argument("--title", default="vltrain: three stages")
    words = parser.parse_args()
    found = [run for folder in words.folders for run in find_runs(folder)]
    if not found:
        raise DataError(f"no run in {', '.join(map(str, words.folders))}: train one first")
    runs = read_runs(found)
    html, picture = words.folders[0] / "report.html", words.folders[0] / "overview.png"
    notes = [
        line
        for folder in words.folders
        if (folder / NOTES).is_file()
        for line in (folder / NOTES).read_text(encoding="utf-8").splitlines()
    ]
    first = first_evaluated(runs)
    notes += _what_the_first_stage_shows(first.points[-1]) if first is not None else []
    table = write_report(
        runs,
        html=html,
        picture=picture,
        title=words.title,
        card_folders=_card_folders(found),
        notes=notes,
    )
    print(table)
    print(f"\n{html}\n{picture}")


def _what_the_first_stage_shows(last: Point) -> list[str]:
    """Plain words on whether the first stage already sees: its last figures with and without
    picture."""
    notes = []
    for name, choice in last.choices.items():
        loss = last.held_out[name]
        chance = choice.chance or 0.0
        margin = 2 * math.sqrt(chance * (1 - chance) / max(choice.asked, 1))
        verdict = (
            "that is above guessing"
            if choice.share > chance + margin
            else "that is no better than guessing: this stage alone does not show sight here"
        )
        blank = f"{loss.blank_loss:.2f}" if loss.blank_loss is not None else "not measured"
        notes.append(
            f"After {last.stage}, {name}: caption loss {loss.loss:.2f} with the picture and "
            f"{blank} with it blanked; the right caption is picked in {choice.share:.0%} of "
            f"{choice.asked}, guessing gives {chance:.0%} ({verdict})."
        )
    return notes


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
