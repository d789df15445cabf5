"""How full the plan's packs are, and what simpler ways make of the same pieces.

    python benchmarks/plan_fill.py

The pieces of a stretch of the plan are packed again: one per sequence; in the order in which they
come, a new pack when one does not fit (next fit); into the first of 20 open packs that takes it
(the buffer that VLM trainers use); best-fit decreasing over all pieces at once (the limit). And
concatenated and cut every 4,096 tokens, which is always full: there it is counted how many
documents are cut, and how many of the cuts go through an image.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from results import arguments, report
from synthetic import SEQUENCE_LENGTH, TOKENS_PER_IMAGE, pictures, plan_of, texts

from vltrain.batch import Modality, StepPlan
from vltrain.data.config import MixtureConfig, PackingConfig
from vltrain.data.order import random_order
from vltrain.data.packing import best_fit_decreasing

OPEN_PACKS = 20


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Tokens and images of pieces, in the order in which a stream gives them."""

    tokens: list[int]
    images: list[int]


def main() -> None:
    options = arguments("Fill of the plan's packs.")
    parsed = options.parse_args()
    steps = 2 if parsed.quick else 20
    figures: dict[str, Any] = {}
    mixed = planned(steps, MixtureConfig(language_share=0.7), texts_per_sample=0.0)
    alone = planned(steps, MixtureConfig(language_share=0.0), texts_per_sample=0.0)
    grouped = MixtureConfig(language_share=0.7, grouping=True)
    topped_up = planned(3 * steps, grouped, texts_per_sample=0.5)
    multimodal = [step for step in topped_up if step.modality is Modality.multimodal]
    language = [step for step in topped_up if step.modality is Modality.language]
    for name, plan in (("70:30 mixed", mixed), ("multimodal only", alone)):
        figures[name] = {"this plan": fill(plan), **others(pieces_of(plan))}
    figures["multimodal, text top-up"] = {"this plan": fill(multimodal)}
    figures["language steps beside them"] = {"this plan": fill(language)}
    report(
        "plan_fill",
        figures=figures,
        goals={
            "fill, 70:30 mixed": (fill(mixed), ">=", 0.997),
            "fill, multimodal only": (fill(alone), ">=", 0.94),
            "fill, multimodal with text top-up": (fill(multimodal), ">=", 0.995),
        },
        draw=lambda figure: draw(figure, figures),
        out=parsed.out,
    )


def planned(steps: int, mixture: MixtureConfig, *, texts_per_sample: float) -> list[StepPlan]:
    packing = PackingConfig(
        enabled=True,
        sequence_length=SEQUENCE_LENGTH,
        window_samples=1024,
        top_up_texts_per_sample=texts_per_sample,
    )
    plan = plan_of([texts(), pictures()], mixture=mixture, packing=packing)
    return list(itertools.islice(plan.steps(), steps))


def fill(steps: Sequence[StepPlan]) -> float:
    """Share of the sequences' places that hold a token."""
    tokens = sum(sum(step.tokens.values()) for step in steps)
    return tokens / (SEQUENCE_LENGTH * sum(len(step.packs) for step in steps))


def pieces_of(steps: Sequence[StepPlan]) -> Pieces:
    refs = [ref for step in steps for pack in step.packs for ref in pack.pieces]
    refs = [refs[i] for i in random_order(len(refs), "stream").tolist()]
    return Pieces(tokens=[ref.tokens for ref in refs], images=[ref.images for ref in refs])


def others(pieces: Pieces) -> dict[str, Any]:
    """Fill of other ways to pack the same pieces."""
    total = sum(pieces.tokens)
    whole = best_fit_decreasing(
        pieces.tokens,
        images=pieces.images,
        goes_first=[n > 0 for n in pieces.images],
        capacity_tokens=SEQUENCE_LENGTH,
        capacity_images=8,
    )
    packs = {
        "one per sequence": len(pieces.tokens),
        "next fit": first_fit(pieces, open_packs=1),
        f"first fit, {OPEN_PACKS} open packs": first_fit(pieces, open_packs=OPEN_PACKS),
        "best fit decreasing, all at once": len(whole),
    }
    filled = {name: total / (SEQUENCE_LENGTH * count) for name, count in packs.items()}
    return filled | {"concatenated and cut": concatenated(pieces)}


def first_fit(pieces: Pieces, *, open_packs: int) -> int:
    """Packs that are needed when each piece goes into the first open pack that takes it; when none
    does, the fullest makes way for a new one."""
    rooms: list[int] = []
    closed = 0
    for tokens in pieces.tokens:
        place = next((i for i, room in enumerate(rooms) if room >= tokens), None)
        if place is None:
            if len(rooms) == open_packs:
                rooms.remove(min(rooms))
                closed += 1
            rooms.append(SEQUENCE_LENGTH)
            place = len(rooms) - 1
        rooms[place] -= tokens
    return closed + len(rooms)


def concatenated(pieces: Pieces) -> dict[str, float]:
    """What it costs to be full: shares of the documents and of the images that are cut. Images are
    taken to stand at the beginning of their document."""
    tokens, images = np.array(pieces.tokens), np.array(pieces.images)
    start = np.cumsum(tokens) - tokens
    cut = start // SEQUENCE_LENGTH != (start + tokens - 1) // SEQUENCE_LENGTH
    to_first_cut = -start % SEQUENCE_LENGTH
    inside = cut & (to_first_cut < images * TOKENS_PER_IMAGE)
    cut_images = int((inside & (to_first_cut % TOKENS_PER_IMAGE != 0)).sum())
    return {
        "fill": 1.0,
        "documents_cut": float(cut.mean()),
        "images_cut": cut_images / max(1, int(images.sum())),
    }


def draw(figure: Figure, figures: dict[str, Any]) -> None:
    axes = figure.subplots()
    labels, values, colors = [], [], []
    for mix, ways in figures.items():
        for way, value in ways.items():
            if isinstance(value, float):
                labels.append(f"{mix}: {way}")
                values.append(100 * value)
                colors.append("tab:blue" if way == "this plan" else "lightgray")
    axes.barh(labels[::-1], values[::-1], color=colors[::-1])
    for place, value in enumerate(values[::-1]):
        axes.text(value, place, f" {value:.2f}", va="center", fontsize=8)
    axes.set_xlim(0, 112)
    axes.set_xlabel("fill of sequences of 4,096 tokens, %")
    axes.tick_params(axis="y", labelsize=8)


if __name__ == "__main__":
    main()
