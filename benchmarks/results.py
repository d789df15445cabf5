"""Where a benchmark's figures go: printed, written as JSON with what they were measured on, and
drawn."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parent / "results"


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON and the PNG")
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the work, to see that it runs"
    )
    return parser


def report(
    name: str,
    *,
    figures: dict[str, Any],
    goals: dict[str, tuple[float, str, float]],
    draw: Callable[[Figure], None],
    out: Path,
) -> None:
    """Print, write NAME.json and NAME.png. goals: by name (found, ">=" or "<=", wanted)."""
    rows = {
        goal: {
            "found": found,
            "wanted": f"{sign} {wanted:g}",
            "reached": found >= wanted if sign == ">=" else found <= wanted,
        }
        for goal, (found, sign, wanted) in goals.items()
    }
    for goal, row in rows.items():
        mark = "reached" if row["reached"] else "MISSED"
        print(f"{goal}: {row['found']:.6g} (wanted {row['wanted']}) {mark}")
    out.mkdir(parents=True, exist_ok=True)
    content = {"benchmark": name, "machine": machine(), "goals": rows, "figures": figures}
    (out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    figure.savefig(out / f"{name}.png", dpi=120)
    print(f"written: {out / name}.json, {out / name}.png")


def machine() -> dict[str, Any]:
    """What the figures were measured on, and how busy it was."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
