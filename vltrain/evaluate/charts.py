"""The report's pictures.

In: run views. Out: matplotlib axes, drawn; figures are made without pyplot, so nothing global is
touched. Colours say the same everywhere: blue multimodal, orange language, grey the blank control
or the target.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from vltrain.evaluate.results import Accuracy, AnsweredSample, Mean, Point, point_labels
from vltrain.evaluate.run_view import LANGUAGE, MULTIMODAL, RunView
from vltrain.metrics.rows import StepRow

COLORS = {MULTIMODAL: "#2b6cb0", LANGUAGE: "#dd7a2b", None: "#4a5568"}
NAMES = {MULTIMODAL: "multimodal", LANGUAGE: "language", None: "mixed"}
GREY, SOFT, DARK, RIGHT, WRONG = "#b8c0cc", "#5b6773", "#1f2933", "#2f855a", "#c53030"
SHADES = ("#bcd0f7", "#7f9fe3", "#4a6fc4", "#24408e", "#152a5e")
SOURCE_COLORS = ("#dd7a2b", "#2b6cb0", "#2f855a", "#805ad5", "#c53030", "#4a5568", "#b7791f")
_HATCHED: dict[str, Any] = {"color": "white", "edgecolor": DARK, "hatch": "//////", "lw": 0.6}


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One question set over the points that measured it. ``unit``: of its figures, in words."""

    label: str
    unit: str
    figures: tuple[tuple[int, Accuracy | Mean], ...]  # (number of the point, figure)


def draw_loss(axes: Axes, run: RunView) -> None:
    """Loss over steps: every step as a dot in the colour of its modality, and each modality's
    mean."""
    rows = [row for row in run.rows if row.loss is not None]
    for modality in (MULTIMODAL, LANGUAGE, None):
        mine = [row for row in rows if row.modality == modality]
        if not mine:
            continue
        steps = np.asarray([row.step for row in mine])
        losses = np.asarray([row.loss for row in mine], dtype=float)
        axes.plot(steps, losses, ".", ms=3, alpha=0.45, color=COLORS[modality], mew=0)
        axes.plot(
            steps, _smooth(losses), lw=1.8, color=COLORS[modality], label=f"{NAMES[modality]} steps"
        )
    _style(axes, title=f"{run.stage}: training loss", x="step", y="nats per target token")
    if rows:
        axes.legend(frameon=False, fontsize=8)
        high = float(np.percentile([row.loss for row in rows if row.loss is not None], 99.5))
        axes.set_ylim(0, high * 1.08)
    else:
        axes.text(0.5, 0.5, "no steps recorded", ha="center", transform=axes.transAxes, color=GREY)


def draw_share(axes: Axes, run: RunView) -> None:
    """Language share of all tokens so far: realised, planned, and wanted (the targets of the steps
    so far, weighted by their tokens), beside each step's own target."""
    steps = [row.step for row in run.rows]
    targets = np.asarray([row.language_share_target for row in run.rows])
    weights = np.asarray([max(sum(row.planned_tokens.values()), 1) for row in run.rows])
    wanted = 100 * (targets * weights).cumsum() / weights.cumsum()
    axes.plot(steps, 100 * targets, color=GREY, lw=1.2, ls=":", label="target of the step")
    axes.plot(steps, wanted, color=SOFT, lw=1.6, ls="--", label="target so far")
    axes.plot(steps, _cumulative(run.rows, "planned_tokens"), color=DARK, lw=3, label="planned")
    axes.plot(
        steps, _cumulative(run.rows, "tokens"), color=COLORS[LANGUAGE], lw=1.5, label="realised"
    )
    _style(axes, title=f"{run.stage}: language share of tokens", x="step", y="%")
    axes.set_ylim(-3, 103)
    axes.legend(frameon=False, fontsize=8)


def accuracy_bars(points: Sequence[Point]) -> list[Bar]:
    """Question groups first, then boxes and picture choices; each over all points that measured
    it."""
    figures: dict[tuple[str, str], list[tuple[int, Accuracy | Mean]]] = {}

    def add(label: str, unit: str, number: int, figure: Accuracy | Mean | None) -> None:
        if figure is not None:
            figures.setdefault((label, unit), []).append((number, figure))

    for number, point in enumerate(points):
        for source, groups in point.questions.items():
            for group, figure in groups.items():
                add(group_label(source, group), "% right", number, figure)
    for number, point in enumerate(points):
        for source, found in point.boxes.items():
            for group, boxes in found.items():
                label, at = group_label(source, group), f"at IoU {boxes.threshold:g}"
                add(f"{label}, box", f"% right {at}", number, boxes.first_box)
                add(f"{label}, F1 of boxes", f"% {at}", number, boxes.f1)
    for number, point in enumerate(points):
        for source, figure in point.choices.items():
            add(f"{source}: which caption?", "% right", number, figure)
    return [
        Bar(label=label, unit=unit, figures=tuple(found))
        for (label, unit), found in figures.items()
    ]


def group_label(source: str, group: str) -> str:
    """A question group's name, for people."""
    return source if group == "all" else f"{source}: {group}"


def draw_accuracy(axes: Axes, points: Sequence[Point]) -> None:
    """Bars per question set and point; hatched: what the model scores with the picture blanked;
    dotted: what guessing scores."""
    bars = accuracy_bars(points)
    width = 0.8 / max(len(points), 1)
    for place, bar in enumerate(bars):
        for number, figure in bar.figures:
            x = place + (number - (len(points) - 1) / 2) * width
            height = 100 * figure.share
            axes.bar(x, height, width * 0.92, color=_shade(number, len(points)))
            blank = 100 * (figure.blank_share or 0.0)
            top = max(height, blank) + 1.5
            axes.text(x, top, f"{height:.0f}", ha="center", fontsize=8.5, color=DARK)
            if blank:
                axes.bar(x, blank, width * 0.46, **_HATCHED)
        chance = bar.figures[0][1].chance
        if chance is not None:
            axes.plot([place - 0.45, place + 0.45], [100 * chance] * 2, color=WRONG, lw=1.4, ls=":")
    for number, label in enumerate(point_labels(points)):
        axes.bar(0, 0, color=_shade(number, len(points)), label=f"after {label}")
    axes.bar(0, 0, label="picture blanked", **_HATCHED)
    if any(bar.figures[0][1].chance is not None for bar in bars):
        axes.plot([], [], color=WRONG, lw=1.4, ls=":", label="guessing")
    axes.set_xticks(range(len(bars)), [bar.label.replace(": ", "\n") for bar in bars])
    _style(axes, title="Held-out accuracy", x="", y="% right")
    axes.set_ylim(0, 108)
    axes.legend(
        frameon=False, fontsize=8.5, ncols=6, loc="upper center", bbox_to_anchor=(0.5, -0.14)
    )


def draw_held_out(axes: Axes, points: Sequence[Point]) -> None:
    """Held-out loss per source over the points; hollow: the same with the pictures blanked."""
    sources = list(dict.fromkeys(name for point in points for name in point.held_out))
    for number, source in enumerate(sources):
        color = SOURCE_COLORS[number % len(SOURCE_COLORS)]
        found = [(n, p.held_out[source]) for n, p in enumerate(points) if source in p.held_out]
        seen = [(n, figure.loss) for n, figure in found]
        blank = [(n, figure.blank_loss) for n, figure in found if figure.blank_loss is not None]
        axes.plot(*_columns(seen), "o-", color=color, ms=5, lw=1.6, label=source)
        axes.plot(*_columns(blank), "o:", color=color, ms=5, lw=1, mfc="white")
    axes.set_xticks(range(len(points)), [f"after {p}" for p in point_labels(points)])
    axes.set_xlim(-0.3, len(points) - 0.7)
    axes.set_ylim(bottom=0)
    title = "Held-out loss (hollow: picture blanked)"
    _style(axes, title=title, x="", y="nats per target token")
    if sources:
        axes.legend(
            frameon=False, fontsize=8.5, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.14)
        )


def draw_sample(axes: Axes, sample: AnsweredSample) -> None:
    """A picture with its question, the answer expected and the answer given."""
    assert sample.image_png is not None
    picture = Image.open(io.BytesIO(base64.b64decode(sample.image_png)))
    axes.imshow(np.asarray(picture), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    color = RIGHT if sample.is_right else WRONG
    for spine in axes.spines.values():
        spine.set_color(color)
        spine.set_linewidth(2)
    axes.set_title(_wrapped(sample.question, 26), fontsize=7.5, color=DARK)
    said = _wrapped(f"says: {sample.answer or '(nothing)'}", 26)
    rest = "" if sample.is_right else "\n" + _wrapped(f"expected: {sample.expected}", 26)
    axes.set_xlabel(said + rest, fontsize=8, color=color)


def shown_samples(points: Sequence[Point], *, number: int) -> list[AnsweredSample]:
    """Up to ``number`` pictures of the newest point that has any, taken from its groups in turn."""
    for point in reversed(points):
        groups: dict[tuple[str, str], list[AnsweredSample]] = {}
        for samples in point.samples.values():
            for sample in samples:
                if sample.image_png is not None:
                    groups.setdefault((sample.source, sample.group), []).append(sample)
        queues = list(groups.values())
        chosen: list[AnsweredSample] = []
        while any(queues) and len(chosen) < number:
            for queue in queues:
                if queue and len(chosen) < number:
                    chosen.append(queue.pop(0))
        if chosen:
            return sorted(chosen, key=lambda s: (s.source, s.group))
    return []


def png_bytes(figure: Figure, *, dpi: int) -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a centred window of a thirtieth of the run."""
    window = max(1, len(values) // 30)
    sums = np.cumsum(np.concatenate([[0.0], np.nan_to_num(values, nan=float(np.nanmean(values)))]))
    places = np.arange(len(values))
    low, high = np.maximum(places - window, 0), np.minimum(places + window + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _cumulative(rows: Sequence[StepRow], name: str) -> np.ndarray:
    """Language share of the tokens up to each step, %."""
    counts = np.asarray(
        [[getattr(r, name).get(m, 0) for m in (LANGUAGE, MULTIMODAL)] for r in rows], dtype=float
    ).reshape(-1, 2)
    sums = counts.cumsum(axis=0)
    return 100 * sums[:, 0] / np.maximum(sums.sum(axis=1), 1)


def _shade(number: int, count: int) -> str:
    """Later points are darker; the last of them all is the darkest but one."""
    first = max(0, len(SHADES) - 1 - count)
    return SHADES[min(first + number, len(SHADES) - 1)]


def _columns(pairs: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


def _style(axes: Axes, *, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10.5, color=DARK, loc="left", fontweight="bold")
    axes.set_xlabel(x, fontsize=9, color=DARK)
    axes.set_ylabel(y, fontsize=9, color=DARK)
    axes.tick_params(labelsize=8, colors=DARK, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.grid(axis="y", color="#e8ecf1", lw=0.8)
    axes.set_axisbelow(True)


def _wrapped(text: str, width: int) -> str:
    """At most two lines of ``width`` characters; dollar signs are text, not mathematics."""
    words, lines = " ".join(text.split()).replace("$", r"\$"), []
    while words and len(lines) < 2:
        cut = len(words) if len(words) <= width else max(words.rfind(" ", 0, width), 1)
        if len(lines) == 1 and cut < len(words):
            lines.append(words[: width - 1].rstrip() + "…")
            break
        lines.append(words[:cut])
        words = words[cut:].strip()
    return "\n".join(lines)
