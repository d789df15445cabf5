"""What all launch scripts share: words to a checked config, errors to one message and an exit code.

Exit codes: 0 done; 1 Hydra refused the words; 2 an error that is the user's to mend, 3 another
process failed, 75 stopped by a signal and saved (one message, no traceback). Under a launcher the
first rank speaks for all until the processes know each other; after that a rank that fails says so
itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from vltrain import distributed
from vltrain.errors import ConfigError, VltrainError
from vltrain.redact import redacted_errors
from vltrain.runconfig import RunConfig, clean_arguments, from_hydra, register_schema

CONF = Path(__file__).resolve().parents[1] / "conf"
LONGEST_NAME = 200
"""Characters; most file systems take 255 bytes."""
GROUPS = sorted({p.parent.name for p in CONF.glob("*/*.yaml")})


def run_with_config(task: Callable[[RunConfig], None]) -> None:
    """Compose the config from the command line and call ``task`` with it (for each job of a
    sweep)."""
    with redacted_errors():
        _run_with_config(task)


def _run_with_config(task: Callable[[RunConfig], None]) -> None:
    sys.argv[1:] = clean_arguments(sys.argv[1:])
    register_schema()
    speaks = os.environ.get("RANK", "0") == "0"
    stderr = sys.stderr
    if not speaks:
        # Every rank composes the same words: let the first alone complain about them.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
    def job(composed: DictConfig) -> None:
        sys.stderr = stderr
        with_clean_errors(lambda: task(_named(from_hydra(composed))))

    with_clean_errors(lambda: _refuse_words(sys.argv[1:]))
    job()


def with_clean_errors(task: Callable[[], None]) -> None:
    """Run ``task``; a VltrainError becomes one message and its exit code."""
    with redacted_errors():
        try:
            task()
        except VltrainError as error:
            alone = distributed.world_size() > 1 and not error.on_all_ranks
            if alone or os.environ.get("RANK", "0") == "0":
                who = f"rank {distributed.rank()}: " if alone else ""
                print(f"{who}error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(error.exit_code) from error


def shows_usage(usage: str | None) -> bool:
    """Whether the words ask for help; ``usage``, a script's docstring, is then printed. (Hydra's
    own help composes the config first, and complains that no stage is chosen.)"""
    if not {"-h", "--help"} & set(sys.argv[1:]):
        return False
    print((usage or "").strip())
    print("\nHydra's own options: --hydra-help. Documentation: docs/")
    return True


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """``key=value`` words over the config of a run that exists, as ``overrides``."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="over the run's config, such as model.weights.sam=PATH where weights have moved",
    )


def _named(config: RunConfig) -> RunConfig:
    """In a sweep, every job is a run of its own, named by the words that the sweep varies (all
    words would exceed what a file name may be)."""
    state = HydraConfig.get()
    if state.mode is RunMode.MULTIRUN:
        given = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
        parsed = OverridesParser.create().parse_overrides(given)
        swept = {override.key_or_group for override in parsed if override.is_sweep_override()}
        changes = [w for w in state.overrides.task if w.lstrip("+~").split("=")[0] in swept]
        name = ",".join([str(state.job.num), *changes]).replace("'", "").replace("/", "_")
        config.run.name = f"{config.run.name}/{name[:LONGEST_NAME]}"
    return config


def _refuse_words(words: list[str]) -> None:
    """What Hydra would answer with a complaint about something else: ``stage=1,2`` and
    ``stgae=2``."""
    for word in words:
        if word.startswith("stage=") and "," in word:
            raise ConfigError(
                f"{word}: the stage cannot be swept, because every stage starts from the result of "
                "another; run the command once for each stage, in turn"
            )
    names = {word.lstrip("+~").split("=")[0] for word in words if "=" in word}
    if "stage" in names:
        return
    keys = {field.name for field in dataclasses.fields(RunConfig)}
    for name in sorted(n for n in names if "." not in n and n not in {*GROUPS, *keys}):
        close = difflib.get_close_matches(name, GROUPS, n=1, cutoff=0.7)
        if close:
            raise ConfigError(
                f"{name}=... is no key of this config; did you mean {close[0]}=...? "
                f"Groups: {', '.join(GROUPS)}"
            )
