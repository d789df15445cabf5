"""Secrets out of every text that leaves the process: logs, errors, config.yaml, wandb's config.

In: a text. Out: the same with ``REDACTED`` for passwords in URLs and signed queries, for values of
the config's keys that are called secret, and for the values of this process's environment whose
names end in KEY, TOKEN, SECRET or PASSWORD. Keys belong into the environment; this is for what
slips into a path or another library's message. Cost: microseconds per text. What the processes of
a launcher or of wandb print by themselves does not pass here.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import threading
from collections.abc import Iterator
from typing import TextIO
from urllib.parse import quote

HIDDEN = "REDACTED"
_SHORTEST = 8
"""Characters; shorter values of the environment are words like "true"."""
_SECRET_NAME = re.compile(
    r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|CONNECTION_STRING)$", re.IGNORECASE
)
_IN_URL = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
_SIGNED = re.compile(
    r"(?i)([?&](?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|Signature|sig|secret"
    r"|password|access_token|token|api_?key|key)=)[^&\s'\"]+"
)
_NAMED = re.compile(
    r"(?im)^(\s*[+~]*(?:[\w.]*[._])?(?:api_?key|secret|secret_key|access_key|password|auth_token"
    r"|access_token)\s*[:=]\s*)(?!null\b)\S.*$"
)


def redact(text: str) -> str:
    """``text`` without secrets."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET_NAME.search(name):
            for written in (value, quote(value, safe=""), quote(value)):
                text = text.replace(written, HIDDEN)
    text = _IN_URL.sub(HIDDEN, text)
    text = _SIGNED.sub(rf"\g<1>{HIDDEN}", text)
    return _NAMED.sub(rf"\g<1>'{HIDDEN}'", text)


@contextlib.contextmanager
def redacted_errors() -> Iterator[None]:
    """Standard error without secrets, whoever writes to it in this process: Hydra, tracebacks,
    warnings, the logs of other libraries."""
    stream = sys.stderr
    sys.stderr = wrapped = _Redacted(stream)
    ends = True
    try:
        yield
    except SystemExit:
        raise
    except BaseException:
        ends = False  # the interpreter will print its traceback
        raise
    finally:
        wrapped.flush()
        if ends:
            sys.stderr = stream


class _Redacted(io.TextIOBase):
    """Whole lines, so that no secret is cut in two."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._rest = stream, ""
        self._lock = threading.RLock()  # what is collected meanwhile may write, too

    def write(self, text: str, /) -> int:
        with self._lock:
            whole, end, self._rest = (self._rest + text).rpartition("\n")
            self._stream.write(redact(whole + end))
        return len(text)

    def flush(self) -> None:
        with self._lock:
            rest, self._rest = self._rest, ""
            self._stream.write(redact(rest))
            self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()
