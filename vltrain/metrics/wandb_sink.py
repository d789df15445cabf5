"""Weights & Biases: a copy of what ``steps.jsonl`` holds, drawn as curves.

In: step rows on the first rank. Out: a wandb run, online where a key is at hand and offline
(files under the run directory, ``wandb sync`` sends them later) where not. It never asks a
question and never stops training: whatever goes wrong becomes one warning. Keys come from the
environment or netrc, where wandb itself looks, and never from the run config, because that config
is uploaded.

Steps go in as a metric of their own rather than as wandb's step: wandb drops what goes backwards,
and a resumed run does the steps after its checkpoint again.
"""

from __future__ import annotations

import contextlib
import logging
import netrc
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import wandb
from wandb.errors import Error as WandbError

from vltrain.metrics.config import WandbConfig, WandbMode
from vltrain.metrics.rows import StepRow
from vltrain.metrics.sinks import Interval, IntervalSummary
from vltrain.redact import redact

_log = logging.getLogger(__name__)

_START_SECONDS = 30.0
FAILURES = (WandbError, OSError, RuntimeError, ValueError)
"""What wandb raises for its own troubles: service, network, disk, refused settings."""


class WandbSink:
    """One wandb run. ``run_id`` goes into the checkpoint; given back, the same run continues."""

    def __init__(
        self,
        cfg: WandbConfig,
        *,
        directory: Path,
        name: str,
        run_id: str | None,
        config: Mapping[str, Any],
        every: int,
    ) -> None:
        self.run_id = run_id or secrets.token_hex(4)
        self._every = every
        self._interval = Interval()
        self._run: Any = None
        mode = choose_mode(cfg.mode)
        directory.mkdir(parents=True, exist_ok=True)
        for attempt in (mode, "offline") if mode == "online" else (mode,):
            self._run = self._start(cfg, directory, name, config, mode=attempt)
            if self._run is not None:
                self._run.define_metric("step")
                self._run.define_metric("*", step_metric="step")
                break

    def write(self, row: StepRow) -> None:
        if self._run is None:
            return
        self._interval.add(row)
        if row.step % self._every == 0:
            self._send(self._interval.take())

    def close(self) -> None:
        if self._run is None:
            return
        if len(self._interval):
            self._send(self._interval.take())
        run, self._run = self._run, None
        try:
            if run is not None:
                run.finish()
        except FAILURES as error:
            _log.warning("wandb did not finish (%s); the run's own files are complete", error)

    def _send(self, summary: IntervalSummary) -> None:
        try:
            self._run.log(wandb_metrics(summary))
        except FAILURES as error:
            _log.warning("wandb stopped (%s); training goes on, steps.jsonl has everything", error)
            self._run = None

    def _start(
        self,
        cfg: WandbConfig,
        directory: Path,
        name: str,
        config: Mapping[str, Any],
        *,
        mode: str,
    ) -> Any:
        settings = wandb.Settings(console="off", silent=True, init_timeout=_START_SECONDS)
        try:
            with _clean_command_line():
                return wandb.init(
                    project=cfg.project,
                    entity=cfg.entity,
                    tags=[redact(tag) for tag in cfg.tags],
                    name=redact(name),
                    id=self.run_id,
                    # Offline files of one id are joined when they are synced.
                    resume="allow" if mode == "online" else None,
                    mode=mode,  # type: ignore[arg-type]
                    dir=str(directory),
                    config=dict(config),
                    settings=settings,
                )
        except FAILURES as error:
            then = (
                "offline instead" if mode == "online" else "without it, steps.jsonl has everything"
            )
            _log.warning("wandb did not start %s (%s); going on %s", mode, error, then)
            return None


@contextlib.contextmanager
def _clean_command_line() -> Iterator[None]:
    """wandb records the words of the command line, whatever is in them, and has no setting of
    its own for them."""
    given = sys.argv
    sys.argv = [redact(word) for word in given]
    try:
        yield
    finally:
        sys.argv = given


def choose_mode(mode: WandbMode) -> str:
    """``online``, ``offline`` or ``disabled``.

    ``WANDB_MODE`` and ``WANDB_DISABLED`` of the environment have the last word on ``auto``.
    ``online`` without a key would make wandb ask for one, so it becomes offline with a warning.
    """
    asked = os.environ.get("WANDB_MODE", "")
    if mode is WandbMode.auto:
        if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1") or asked == "disabled":
            return "disabled"
        return "online" if asked != "offline" and has_key() else "offline"
    if mode is WandbMode.online and not has_key():
        _log.warning(
            "metrics.wandb.mode=online, but no key is set (WANDB_API_KEY or netrc); recording "
            "offline, 'wandb sync' sends it later"
        )
        return "offline"
    return mode.value


def has_key() -> bool:
    """True where wandb would find a key without asking: environment, or netrc for its host."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        found = netrc.netrc(path).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return False
    return found is not None and bool(found[2])


def wandb_metrics(summary: IntervalSummary) -> dict[str, float]:
    """What one point holds: counts are sums over the interval's steps, not the last step's. A value
    that is not known is left out."""
    row = summary.last
    metrics: dict[str, float | None] = {
        "step": row.step,
        "loss": summary.loss,
        **{f"loss/{m}": x for m, x in summary.loss_by_modality.items()},
        **{f"lr/{part}": lr for part, lr in row.lr.items()},
        "grad_norm": summary.grad_norm,
        **{f"tokens/{m}": n for m, n in summary.tokens.items()},
        **{f"supervised/{m}": n for m, n in summary.supervised.items()},
        "ratio/language_target": row.language_share_target,
        "ratio/language_realised": row.language_share_realised,
        "holes": summary.holes,
        **{f"bad_records/{source}": n for source, n in (row.bad_records or {}).items()},
        "skipped": summary.skipped,
        "throughput/tokens_per_second": summary.tokens_per_second,
        "throughput/images_per_second": summary.images_per_second,
        "throughput/data_wait_share": summary.data_wait_share,
        "throughput/model_flops_per_second": summary.flops_per_second,
        "throughput/mfu": summary.mfu,
        "throughput/useful_token_share": summary.useful_share,
        "throughput/rank_imbalance": summary.rank_imbalance,
    }
    if row.routers is not None:  # of the last step, the layer that is spread worst
        metrics["routers/max_over_mean"] = max(row.routers["max_over_mean"])
        metrics["routers/entropy"] = min(row.routers["entropy"])
    return {name: value for name, value in metrics.items() if value is not None}
