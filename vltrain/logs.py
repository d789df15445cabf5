"""Logging: one format, one place that decides which ranks speak.

Rank 0 logs at INFO, the others at WARNING and above, with their rank in every line. No line holds a
secret.
"""

from __future__ import annotations

import logging
import sys

from vltrain.redact import redact


class Redacting(logging.Formatter):
    """Takes secrets out of whole lines, arguments and tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def setup_logging(*, rank: int, level: int = logging.INFO) -> None:
    """Send the ``vltrain``, ``stages`` and ``launch`` loggers to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        Redacting(f"%(asctime)s %(levelname).1s r{rank} %(name)s: %(message)s", "%H:%M:%S")
    )
    for name in ("vltrain", "stages", "launch", "data_recipes"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level if rank == 0 else max(level, logging.WARNING))
