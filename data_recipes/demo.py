"""The demo's data sets, all from files that installable packages carry: no network, about 30 s,
140 MB."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_recipes import (
    digits_caption,
    digits_qa,
    easy_vqa_boxes,
    easy_vqa_what,
    easy_vqa_yes_no,
    emoji_caption,
    emoji_qa,
    glyphs,
    interleaved_pages,
    ocr_lines,
    photos,
    shapes_caption,
    stdlib_text,
    synthetic_shapes,
    tagged_text,
    text_sft,
)
from data_recipes.write import Recipe, Written, write_recipe
from vltrain.errors import DataError

RECIPES: tuple[Recipe, ...] = (
    emoji_caption,
    emoji_qa,
    digits_caption,
    digits_qa,
    shapes_caption,
    easy_vqa_what,
    easy_vqa_yes_no,
    ocr_lines,
    synthetic_shapes,
    glyphs,
    photos,
    stdlib_text,
    tagged_text,
    text_sft,
    interleaved_pages,
)
BOXES: tuple[Recipe, ...] = (easy_vqa_boxes,)
"""Not part of the demo: what its DeepSeek-VL2 can be taught besides (demo_vl2_boxes)."""


def write_demo(
    root: Path,
    *,
    among: Sequence[Recipe] = RECIPES,
    only: Sequence[str] = (),
    limit: int | None = None,
) -> Iterator[Written]:
    """Write the sets of ``among`` (all, or those named in ``only``) one after the other, each
    reported as it is done. Raises DataError for an unknown name."""
    recipes = {recipe.card().name: recipe for recipe in among}
    unknown = sorted(set(only) - set(recipes))
    if unknown:
        raise DataError(
            f"no demo data set is called {', '.join(unknown)}; the choices are {', '.join(recipes)}"
        )
    for name in only or recipes:
        yield write_recipe(recipes[name], root, limit=limit)
