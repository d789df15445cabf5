"""Secrets out of every text that leaves the process: logs, errors, config.yaml, wandb's config.

In: a text. Out: the same with ``REDACTED`` for passwords in URLs and signed queries, for values of
the config's keys that are called secret, and for the values of this process's environment whose
names end in KEY, TOKEN, SECRET or PASSWORD. Keys belong into the environment; this is for what
slips into a path or another library's message. Cost: microseconds per text.
"""

from __future__ import annotations

import os
import re

HIDDEN = "REDACTED"
_SHORTEST = 8
"""Characters; shorter values of the environment are words like "true"."""
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_IN_URL = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
_SIGNED = re.compile(
    r"(?i)([?&](?:X-Amz-(?:Signature|Credential|Security-Token)|Signature|sig|access_token|token"
    r"|api_?key|key)=)[^&\s'\"]+"
)
_NAMED = re.compile(
    r"(?im)^(\s*[+~]*(?:[\w.]*[._])?(?:api_?key|secret|secret_key|access_key|password|auth_token"
    r"|access_token)\s*[:=]\s*)(?!null\b)\S.*$"
)


def redact(text: str) -> str:
    """``text`` without secrets."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET_NAME.search(name):
            text = text.replace(value, HIDDEN)
    text = _IN_URL.sub(HIDDEN, text)
    text = _SIGNED.sub(rf"\g<1>{HIDDEN}", text)
    return _NAMED.sub(rf"\g<1>'{HIDDEN}'", text)
