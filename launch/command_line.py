"""What all launch scripts share: words to a checked config, errors to one message and an exit code.

Exit codes: 0 done; 1 Hydra refused the words; 2 an error that is the user's to mend, 3 another
process failed, 75 stopped by a signal and saved, 130 Ctrl-C (one message, no traceback). Under a
launcher the first rank speaks for all until the processes know each other; after that a rank that
fails says so itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vltrain import distributed
from vltrain.errors import ConfigError, VltrainError
from vltrain.redact import redacted_errors
from vltrain.runconfig import RunConfig, clean_arguments, from_hydra, register_schema

CONF = Path(__file__).resolve().parents[1] / "conf"
LONGEST_NAME = 200
"""Characters; most file systems take 255 bytes."""
INTERRUPTED = (
    "interrupted. Nothing was saved since the last checkpoint; the same command continues a "
    "training run from there (SIGTERM saves first)"
)
GROUPS = sorted({p.parent.name for p in CONF.glob("*/*.yaml")})


def run_with_config(task: Callable[[RunConfig], None]) -> None:
    """Compose the config from the command line and call ``task`` with it (for each job of a
    sweep)."""
    run_with_composed(lambda composed: task(_named(from_hydra(composed))))


def run_with_composed(task: Callable[[DictConfig], None]) -> None:
    """As ``run_with_config``, where a few values are enough: nothing is checked, and what a command
    line leaves ``???`` may stay so."""
    with redacted_errors():
        _run_with_composed(task)


def _run_with_composed(task: Callable[[DictConfig], None]) -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(_help(sys.modules["__main__"].__doc__ or ""))
        return
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
        with_clean_errors(lambda: task(composed))

    with_clean_errors(lambda: _refuse_words(sys.argv[1:]))
    job()


def _help(what: str) -> str:
    """What a script says of itself, and what can be chosen (Hydra's own help needs a stage)."""
    defaults = OmegaConf.load(CONF / "train.yaml").defaults
    has_default = {key for entry in defaults if isinstance(entry, DictConfig) for key in entry}
    lines = [what.strip(), "", "Groups:"]
    for group in GROUPS:
        options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        word = group if group in has_default else f"+{group}"
        lines.append(f"  {word}={'|'.join(options)}")
    lines += ["", "All keys, as key=value, with their values: the same words and --cfg job."]
    return "\n".join(lines)


def with_clean_errors(task: Callable[[], None]) -> None:
    """Run ``task``; a VltrainError, or Ctrl-C, becomes one message and its exit code."""
    with redacted_errors():
        try:
            task()
        except VltrainError as error:
            alone = distributed.world_size() > 1 and not error.on_all_ranks
            if alone or os.environ.get("RANK", "0") == "0":
                who = f"rank {distributed.rank()}: " if alone else ""
                print(f"{who}error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(error.exit_code) from error
        except KeyboardInterrupt:
            if os.environ.get("RANK", "0") == "0":
                print(INTERRUPTED, file=sys.stderr, flush=True)
            raise SystemExit(128 + signal.SIGINT) from None


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
