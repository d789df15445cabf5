"""The figures of all evaluations as one table, for the terminal and the report.

In: points. Out: rows of words: one line a measure, one column a point; the figure with the
picture blanked stands in brackets.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vltrain.evaluate.charts import accuracy_bars, group_label
from vltrain.evaluate.results import Accuracy, BoxAccuracy, HeldOutLoss, Mean, Point, point_labels

NONE = "-"


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRow:
    """``cells``: one per point, in words. ``note``: how many were asked (once where all points
    were asked alike, else point by point), and what guessing gives."""

    measure: str
    cells: tuple[str, ...]
    note: str


def result_rows(points: Sequence[Point]) -> list[TableRow]:
    """All measures: accuracies, how well boxes agree, then losses."""
    rows = []
    for bar in accuracy_bars(points):
        by_point = dict(bar.figures)
        found = [by_point.get(n) for n in range(len(points))]
        asked = [figure.asked if figure is not None else None for figure in found]
        last = bar.figures[-1][1]
        chance = f", guessing {100 * last.chance:.0f}%" if last.chance is not None else ""
        cells = tuple(accuracy_words(figure) for figure in found)
        note = _counts(asked, unit="asked") + chance
        rows.append(TableRow(measure=f"{bar.label}, {bar.unit}", cells=cells, note=note))
    rows += _box_rows(points)
    for source in dict.fromkeys(name for point in points for name in point.held_out):
        losses = [p.held_out.get(source) for p in points]
        targets = [loss.targets if loss is not None else None for loss in losses]
        cells = tuple(loss_words(loss) for loss in losses)
        note = _counts(targets, unit="targets")
        rows.append(TableRow(measure=f"{source}, loss", cells=cells, note=note))
    return rows


def _box_rows(points: Sequence[Point]) -> list[TableRow]:
    """Of every group with boxes: mean IoU, and how many answers name none."""
    found: dict[str, list[BoxAccuracy | None]] = {}
    for number, point in enumerate(points):
        for source, groups in point.boxes.items():
            for group, boxes in groups.items():
                cells = found.setdefault(group_label(source, group), [None] * len(points))
                cells[number] = boxes
    rows = []
    for label, of_points in found.items():
        means = [boxes.iou if boxes is not None else None for boxes in of_points]
        note = _counts([mean.asked if mean is not None else None for mean in means], unit="asked")
        cells = tuple(accuracy_words(mean) for mean in means)
        rows.append(TableRow(measure=f"{label}, mean IoU, %", cells=cells, note=note))
        cells = tuple(unreadable_words(boxes) for boxes in of_points)
        rows.append(TableRow(measure=f"{label}, answers without a box", cells=cells, note=note))
    return rows


def _counts(counts: Sequence[int | None], *, unit: str) -> str:
    """``400 asked``, or ``150, 400 asked`` where points differ."""
    known = [count for count in counts if count is not None]
    return f"{', '.join(map(str, known if len(set(known)) > 1 else known[:1]))} {unit}"


def accuracy_words(figure: Accuracy | Mean | None) -> str:
    """``62.0 (23.0)``: with the picture, and blanked."""
    if figure is None:
        return NONE
    words = f"{100 * figure.share:.1f}"
    return words if figure.blank_share is None else f"{words} ({100 * figure.blank_share:.1f})"


def unreadable_words(boxes: BoxAccuracy | None) -> str:
    """``3 (398)``: with the picture, and blanked."""
    if boxes is None:
        return NONE
    words = str(boxes.seen.unreadable)
    return words if boxes.blank is None else f"{words} ({boxes.blank.unreadable})"


def loss_words(figure: HeldOutLoss | None) -> str:
    """``2.310 (2.950)``: with the pictures, and blanked."""
    if figure is None:
        return NONE
    words = f"{figure.loss:.3f}"
    return words if figure.blank_loss is None else f"{words} ({figure.blank_loss:.3f})"


def terminal_table(points: Sequence[Point]) -> str:
    """The table in plain text, columns aligned; figures in brackets: the same with the picture
    blanked."""
    if not points:
        return "nothing evaluated yet"
    header = ["held out", *(f"after {label}" for label in point_labels(points)), ""]
    lines = [header, *([r.measure, *r.cells, r.note] for r in result_rows(points))]
    header_line, *texts = aligned(lines, left=(0, len(header) - 1))
    rule = "-" * max(len(text) for text in [header_line, *texts])
    footer = "(in brackets: the same with every picture blanked)"
    return "\n".join([header_line, rule, *texts, rule, footer])


def aligned(lines: Sequence[Sequence[str]], *, left: Collection[int]) -> list[str]:
    """Equally long rows of cells as lines of text; the columns ``left`` are flush left, the others
    right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
