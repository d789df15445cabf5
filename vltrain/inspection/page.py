"""One HTML page of inspected steps that needs nothing beside itself.

In: step views, their planned rows, proofs. Out: the page's text, escaped throughout: what a record
says cannot become markup. Pictures are inside, small.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from vltrain.data.config import PackingConfig
from vltrain.inspection.contact_sheet import png_bytes
from vltrain.inspection.page_template import TEMPLATE
from vltrain.inspection.recorded import Proof
from vltrain.inspection.step_table import Locate, PackRow, heading, pack_row, source_shares
from vltrain.inspection.step_view import PackView, PieceView, StepView, TokenKind

COLORS = {
    TokenKind.padding: "#e2e7ee",
    TokenKind.masked: "#9aa5b4",
    TokenKind.learned: "#e0a825",
    TokenKind.image: "#2b6cb0",
}
_PIECE_EDGE = "#1f2933"


def render_page(
    views: Sequence[StepView],
    *,
    title: str,
    about: str,
    notes: Sequence[str],
    names: Sequence[str],
    packing: PackingConfig,
    locate: Locate,
    proofs: Mapping[int, Proof],
) -> str:
    """The page. about: what was looked at and what it cost. proofs: by step number."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    steps = []
    for view in views:
        rows = {
            pack.number: pack_row(pack, names=names, packing=packing, locate=locate)
            for pack in view.plan.packs
        }
        proof = proofs.get(view.number)
        steps.append(
            {
                "number": view.number,
                "heading": heading(view.plan, packing=packing),
                "proof": {"holds": proof.holds, "words": proof.words()} if proof else None,
                "digest": view.digest,
                "shares": source_shares(view.plan, names=names),
                "rows": list(rows.values()),
                "packs": [_pack(pack, row=rows[pack.plan.number]) for pack in view.packs],
                "more_packs": len(view.plan.packs) - len(view.packs),
            }
        )
    return environment.from_string(TEMPLATE).render(
        title=title,
        about=about,
        notes=list(notes),
        colors=[(kind.name, color) for kind, color in COLORS.items()] + [("piece", _PIECE_EDGE)],
        steps=steps,
    )


def strip(pack: PackView) -> Image.Image:
    """A picture one pixel high: the colour of every column's kind, dark where a piece begins."""
    palette = np.array([_rgb(COLORS[kind]) for kind in TokenKind], dtype=np.uint8)
    row = palette[pack.kinds]
    for piece in pack.pieces:
        row[piece.start] = _rgb(_PIECE_EDGE)
    return Image.fromarray(row[None])


def _pack(pack: PackView, *, row: PackRow) -> dict[str, Any]:
    return {
        "row": row,
        "strip_png": _inline(strip(pack)),
        "pieces": [{"view": piece, "runs": _runs(piece, pack)} for piece in pack.pieces],
    }


def _runs(piece: PieceView, pack: PackView) -> list[dict[str, Any]]:
    return [
        {
            "text": run.text,
            "tokens": run.tokens,
            "is_learned": run.kind is TokenKind.learned,
            "image": run.image,
            "tiles": "" if run.image is None else _tiles(*pack.grids[run.image]),
            "picture_png": None
            if run.image is None
            else _inline(Image.fromarray(pack.pictures[run.image])),
        }
        for run in piece.runs
    ]


def _tiles(columns: int, rows: int) -> str:
    return f", {columns} x {rows} tiles" if columns else ""


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _inline(image: Image.Image) -> str:
    """Base64 PNG, for a data URI."""
    return base64.b64encode(png_bytes(image)).decode("ascii")
