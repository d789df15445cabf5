"""Look at the data of a run without training: python launch/inspect_data.py step|diff|lint ...

  step N|A-B [RUN] [key=value ...]   what steps hold: a table, an HTML page and a contact sheet
  diff RUN RUN                       which keys and digests differ, and from which step on the data
  diff RUN key=value ...             the same, against the config of these words
  lint [RUN] [key=value ...]         overlaps, duplicates, repetition and idle sources of a mix

The words are those of launch/train.py. With a RUN (a run directory, or one of its checkpoints) the
config is the run's own with the words laid over it, and steps are held against its record. Neither
a model nor its weights are loaded. Exit codes: 0; 1 and 2 bad input; 3 lint found an error, or a
step is not what the run recorded.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from command_line import run_with_config, with_clean_errors

from stages import policy_of
from vltrain.assemble.inspected import Side, compare_data, inspect_steps, lint_data
from vltrain.errors import ConfigError
from vltrain.evaluate.table import aligned
from vltrain.inspection.findings import count_words
from vltrain.inspection.lint import SourceOutlook
from vltrain.inspection.recorded import run_directory
from vltrain.logs import setup_logging
from vltrain.runconfig import RunConfig, from_file

USAGE = (__doc__ or "").split("\n\n")[1]
FOUND = 3
MOST_STEPS = 50
TERMINAL_PACKS = 12


@dataclass(frozen=True, kw_only=True)
class Words:
    """The command line, sorted. positional: step numbers and runs; overrides: key=value words."""

    command: str
    positional: list[str]
    overrides: list[str]
    out: Path | None
    packs: int
    steps: int


class _Parser(argparse.ArgumentParser):
    """argparse, with its complaints as ours."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. Usage: python launch/inspect_data.py\n{USAGE}")


def main() -> None:
    """Do what the first word says."""
    setup_logging(rank=0)
    words = _parse(sys.argv[1:])
    {"step": show_steps, "diff": show_difference, "lint": show_lint}[words.command](words)


def show_steps(words: Words) -> None:
    """What the steps of a range hold."""
    _count(words, least=1, most=2)
    first, last = _numbers(words.positional[0])

    def show(config: RunConfig, run: Path | None) -> None:
        if last > config.optim.steps:
            raise ConfigError(
                f"step {last} lies behind the stage's end: optim.steps={config.optim.steps}"
            )
        found = inspect_steps(
            config,
            run=run,
            first=first,
            last=last,
            out=words.out or (run or config.run_dir) / "inspection",
            shown_packs=words.packs,
            terminal_packs=TERMINAL_PACKS,
        )
        print(f"{found.text}\n\n{found.page}")
        print(found.sheet or "no picture in these packs, so no contact sheet")
        if not found.holds:
            raise SystemExit(FOUND)

    _with_config(words.positional[1:], words.overrides, show)


def show_difference(words: Words) -> None:
    """Two runs, or a run and the words, side by side."""
    _count(words, least=1, most=2)
    if (len(words.positional) == 2) == bool(words.overrides):
        raise ConfigError(
            f"diff takes two runs, or one run and the words of a config; found "
            f"{len(words.positional)} runs and {len(words.overrides)} words"
        )
    left = run_directory(Path(words.positional[0]))
    there = Side(name=str(left), config=from_file(left / "config.yaml"), run=left)

    def show(config: RunConfig, run: Path | None) -> None:
        here = Side(name=str(run or " ".join(words.overrides)), config=config, run=run)
        for paragraph in compare_data(there, here, steps=words.steps):
            print(paragraph, end="\n\n", flush=True)

    _with_config(words.positional[1:], words.overrides, show)


def show_lint(words: Words) -> None:
    """What is wrong with a mix."""
    _count(words, least=0, most=1)

    def show(config: RunConfig, run: Path | None) -> None:
        report = lint_data(config)
        print("\n".join(aligned(_outlook_lines(report.sources), left=(0, 1, 2))), end="\n\n")
        for finding in report.findings:
            print(finding.words())
        print(f"{count_words(report.findings)} in {config.optim.steps:,} steps")
        if report.has_errors:
            raise SystemExit(FOUND)

    _with_config(words.positional, words.overrides, show)


def _outlook_lines(sources: tuple[SourceOutlook, ...]) -> list[tuple[str, ...]]:
    header = ("source", "modality", "category", "share", "samples", "tokens", "epochs", "cap")
    return [
        header,
        *(
            (
                source.name,
                source.modality.value,
                source.category,
                f"{source.share:.1%}",
                f"{source.samples:,}",
                f"{source.tokens:,}",
                f"{source.epochs:.2f}",
                "-" if source.cap is None else f"{source.cap:g}",
            )
            for source in sources
        ),
    ]


def _parse(arguments: list[str]) -> Words:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("step", "diff", "lint"))
    parser.add_argument("words", nargs="*", help="step number, RUN, key=value, as above")
    parser.add_argument("--out", type=Path, help="step: folder; RUN_DIR/inspection if not given")
    parser.add_argument("--packs", type=int, default=32, help="step: so many packs shown in full")
    parser.add_argument("--steps", type=int, default=100, help="diff: so many steps compared")
    given = parser.parse_intermixed_args(arguments)
    for option in ("packs", "steps"):
        if getattr(given, option) < 1:
            raise ConfigError(f"--{option} {getattr(given, option)}: must be at least 1")
    overrides = [word for word in given.words if _is_override(word)]
    return Words(
        command=given.command,
        positional=[word for word in given.words if not _is_override(word)],
        overrides=overrides,
        out=given.out,
        packs=given.packs,
        steps=given.steps,
    )


def _is_override(word: str) -> bool:
    """A sweep's run directories have = in their names too."""
    return word.startswith(("+", "~")) or ("=" in word and not Path(word).is_dir())


def _count(words: Words, *, least: int, most: int) -> None:
    found = words.positional
    if not least <= len(found) <= most:
        raise ConfigError(
            f"{words.command}: {' '.join(found) or 'nothing'} before the key=value words. "
            f"Usage: python launch/inspect_data.py\n{USAGE}"
        )


def _numbers(word: str) -> tuple[int, int]:
    """``7`` or ``7-9``, from 1."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", word)
    if match is None:
        raise ConfigError(f"{word!r} is no step: give a number such as 7, or a range such as 7-9")
    first, last = int(match.group(1)), int(match.group(2) or match.group(1))
    if first < 1:
        raise ConfigError("there is no step 0: the first step is 1, as in steps.jsonl")
    if last < first:
        raise ConfigError(f"steps {word}: the second number is the smaller one")
    if last - first >= MOST_STEPS:
        raise ConfigError(f"steps {word}: at most {MOST_STEPS} steps at a time")
    return first, last


def _with_config(
    runs: list[str], overrides: list[str], task: Callable[[RunConfig, Path | None], None]
) -> None:
    """Call ``task`` with the config of the run that is named, or of the words alone."""

    def checked(config: RunConfig, run: Path | None) -> None:
        policy_of(config.stage.number).check(config)
        task(config, run)

    if runs:
        run = run_directory(Path(runs[0]))
        checked(from_file(run / "config.yaml", overrides=overrides), run)
        return
    sys.argv[1:] = overrides
    run_with_config(lambda config: checked(config, None))


if __name__ == "__main__":
    with_clean_errors(main)
