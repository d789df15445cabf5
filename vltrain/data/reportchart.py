"""Draws what ``prepare`` found of a source.

In: its report. Out: one PNG: tokens by piece, image sizes, and what was excluded or is double.
Costs a third of a second. Figures are made without pyplot: nothing global is touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vltrain.data.report import SourceReport, binned


def draw_report(report: SourceReport, path: Path) -> None:
    """Write the chart of a source. Raises OSError where that is not possible."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    figure.suptitle(report.summary(), fontsize=8, wrap=True)
    _bars(left, binned(report.histogram), title="pieces by tokens", kind="tab:blue")
    sides = binned(report.image_sides)
    _bars(middle, sides, title="images by longer side, pixels", kind="tab:green")
    odd = {
        **{f"excluded: {reason}": count for reason, count in report.excluded.items()},
        "duplicate keys": report.duplicate_keys,
        "duplicate contents": report.duplicate_contents,
        "unreadable images": report.unreadable,
        "ignored members": report.ignored,
    }
    odd = {what: count for what, count in odd.items() if count}
    _bars(right, odd, title=f"out of the ordinary, of {report.samples:,}", kind="tab:red")
    figure.savefig(path, dpi=110, format="png")


def _bars(axes: Axes, counts: Mapping[str, int], *, title: str, kind: str) -> None:
    axes.set_title(title, fontsize=9)
    names = list(counts)
    axes.barh(range(len(names)), list(counts.values()), color=kind)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.tick_params(axis="x", labelsize=7)
    for row, count in enumerate(counts.values()):
        axes.text(count, row, f" {count:,}", va="center", fontsize=7)
    axes.margins(x=0.2)
    if not names:
        axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes)
        axes.set_xticks([])
