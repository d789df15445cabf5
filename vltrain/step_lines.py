"""Files of JSON lines that name the step they are of: what a run that is resumed keeps of them."""

from __future__ import annotations

import json
import os
from pathlib import Path


def cut_lines_after(path: Path, step: int) -> int:
    """Remove the rows of later steps, and a half-written last row; the file is replaced at once.
    Returns how many rows remain (0 for a file that is not there)."""
    if not path.is_file():
        return 0
    # Not splitlines: a text may hold other separators, which JSON leaves as they are.
    *whole, _ = path.read_text(encoding="utf-8").split("\n")
    kept = [line + "\n" for line in whole if json.loads(line)["step"] <= step]
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text("".join(kept), encoding="utf-8")
    os.replace(aside, path)
    return len(kept)
