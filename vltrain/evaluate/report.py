"""``report.html`` and ``overview.png``: what a set of runs did, for people.

In: run directories (see ``run_view``), folders with data cards, notes. Out: one HTML file that
needs nothing beside itself (pictures inside), and one PNG. Everything is drawn from the files of
the runs, so a report can be made again at any time. Cost: a few seconds of drawing.
"""

from __future__ import annotations

import base64
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from vltrain.evaluate import charts
from vltrain.evaluate.report_template import TEMPLATE
from vltrain.evaluate.results import Point, point_labels
from vltrain.evaluate.run_view import DataCard, RunView, read_cards, token_totals
from vltrain.evaluate.table import result_rows, terminal_table
from vltrain.metrics.console import clock_words

_DPI = 110
_SHOWN_SAMPLES = 24
_PICTURE_SAMPLES = 10


def write_report(
    runs: Sequence[RunView],
    *,
    html: Path,
    picture: Path,
    title: str,
    card_folders: Sequence[Path],
    notes: Sequence[str],
) -> str:
    """Write both files; returns the results as a table for the terminal.

    runs: in the order of training, as ``read_runs`` gives them. notes: sentences shown at the top
    (what the reader must know to read the figures, such as what stands for published weights).
    """
    points = [point for run in runs for point in run.points]
    html.parent.mkdir(parents=True, exist_ok=True)
    picture.parent.mkdir(parents=True, exist_ok=True)
    cards = read_cards(card_folders)
    credits = attribution_lines(cards)
    picture.write_bytes(draw_overview(runs, title=title, credits=credits))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["clock"] = clock_words
    page = environment.from_string(TEMPLATE).render(
        title=title,
        notes=list(notes),
        runs=[_run_section(run) for run in runs],
        labels=point_labels(points),
        result_rows=result_rows(points),
        results_png=_results_png(points),
        samples=charts.shown_samples(points, number=_SHOWN_SAMPLES),
        cards=cards,
    )
    html.write_text(page, encoding="utf-8")
    return terminal_table(points)


def attribution_lines(cards: Sequence[DataCard]) -> list[str]:
    """What the data sets ask to be said, each thing once: a line that another line holds (that of a
    set made from others) is left out."""
    lines = list(dict.fromkeys(card.attribution for card in cards if card.attribution))
    return [line for line in lines if not any(line in other for other in lines if other != line)]


def draw_overview(runs: Sequence[RunView], *, title: str, credits: Sequence[str]) -> bytes:
    """One picture of it all, PNG: loss curves, accuracy, held-out loss, sample pictures, and the
    attribution lines that the data sets ask for."""
    trained = [run for run in runs if run.rows]
    points = [point for run in runs for point in run.points]
    samples = charts.shown_samples(points, number=_PICTURE_SAMPLES)
    heights = [1.0] * bool(trained) + [1.15] * bool(points) + [0.62] * bool(samples)
    figure = Figure(figsize=(14, 3.9 * sum(heights) + 0.6), layout="constrained")
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(w_pad=0.12, h_pad=0.1)  # type: ignore[call-arg]
    figure.suptitle(title, fontsize=15, fontweight="bold", color=charts.DARK, x=0.01, ha="left")
    if credits:
        words = textwrap.fill("  ·  ".join(credits), width=230)
        figure.supxlabel(words, fontsize=6.5, color=charts.SOFT, x=0.01, ha="left")
    if not heights:
        return charts.png_bytes(figure, dpi=_DPI)
    bands = iter(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    if trained:
        band = next(bands)
        for axes, run in zip(
            band.subplots(1, len(trained), squeeze=False)[0], trained, strict=True
        ):
            charts.draw_loss(axes, run)
    if points:
        left, right = next(bands).subplots(1, 2, width_ratios=[1.9, 1])
        charts.draw_accuracy(left, points)
        charts.draw_held_out(right, points)
    if samples:
        band = next(bands)
        band.suptitle(
            "Held-out pictures, and what the last model evaluated says",
            fontsize=10.5,
            fontweight="bold",
            color=charts.DARK,
            x=0.012,
            ha="left",
        )
        for axes, sample in zip(
            band.subplots(1, len(samples), squeeze=False)[0], samples, strict=True
        ):
            charts.draw_sample(axes, sample)
    return charts.png_bytes(figure, dpi=_DPI)


def _run_section(run: RunView) -> dict[str, object]:
    """What the template shows of one run."""
    return {
        "name": run.name,
        "stage": run.stage,
        "directory": str(run.directory),
        "rows": run.rows,
        "summary": run.summary,
        "totals": token_totals(run.rows),
        "config": run.config,
        "chart": _curves_png(run) if run.rows else None,
        "first_loss": _mean_loss(run, first=True),
        "last_loss": _mean_loss(run, first=False),
    }


def _curves_png(run: RunView) -> str:
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    charts.draw_loss(left, run)
    charts.draw_share(right, run)
    return _inline(charts.png_bytes(figure, dpi=_DPI))


def _results_png(points: Sequence[Point]) -> str | None:
    if not points:
        return None
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.9, 1])
    charts.draw_accuracy(left, points)
    charts.draw_held_out(right, points)
    return _inline(charts.png_bytes(figure, dpi=_DPI))


def _mean_loss(run: RunView, *, first: bool) -> float | None:
    """Mean loss of the first or last twentieth of the steps."""
    losses = [row.loss for row in run.rows if row.loss is not None]
    if not losses:
        return None
    count = math.ceil(len(losses) / 20)
    part = losses[:count] if first else losses[-count:]
    return sum(part) / len(part)


def _inline(png: bytes) -> str:
    """Base64, for a data URI."""
    return base64.b64encode(png).decode("ascii")
