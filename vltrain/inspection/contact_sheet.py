"""The pictures of some steps on one sheet: PNG bytes.

In: step views. Out: one cell per picture with its pack and source under it, in the order in which
they are read. Cost: milliseconds; the pictures are small already.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw

from vltrain.inspection.step_view import THUMBNAIL_SIDE, PackView, PieceView, StepView

COLUMNS = 8
MOST_PICTURES = 800
"""More would make a sheet that no viewer likes to open; the page shows the rest."""
_MARGIN, _CAPTION = 8, 30
_INK, _SOFT, _PAPER = "#1f2933", "#5b6773", "white"


def contact_sheet(views: Sequence[StepView]) -> bytes | None:
    """PNG of all pictures of the shown packs (at most MOST_PICTURES); None where there are none."""
    cells = [cell for view in views for cell in _cells(view)][:MOST_PICTURES]
    if not cells:
        return None
    wide, high = THUMBNAIL_SIDE + _MARGIN, THUMBNAIL_SIDE + _CAPTION + _MARGIN
    columns, rows = min(COLUMNS, len(cells)), -(-len(cells) // COLUMNS)
    sheet = Image.new("RGB", (_MARGIN + columns * wide, _MARGIN + rows * high), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (picture, above, below) in enumerate(cells):
        left = _MARGIN + (number % COLUMNS) * wide
        top = _MARGIN + (number // COLUMNS) * high
        sheet.paste(_enlarged(picture), (left, top))
        draw.text((left, top + THUMBNAIL_SIDE + 2), _fitting(above), fill=_INK)
        draw.text((left, top + THUMBNAIL_SIDE + 15), _fitting(below), fill=_SOFT)
    return png_bytes(sheet)


def pictures_of(pack: PackView) -> Iterator[tuple[PieceView, np.ndarray]]:
    """Each picture with the piece that it belongs to, in reading order."""
    pictures = iter(pack.pictures)
    for piece in pack.pieces:
        for _ in range(0 if piece.hole else piece.images):
            yield piece, next(pictures)


def png_bytes(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def _cells(view: StepView) -> Iterator[tuple[np.ndarray, str, str]]:
    """(picture, first line, second line) of each cell."""
    for pack in view.packs:
        for piece, picture in pictures_of(pack):
            yield (
                picture,
                f"{view.number} / {pack.plan.number} {piece.origin.source}",
                piece.origin.key,
            )


def _enlarged(picture: np.ndarray) -> Image.Image:
    """Pixels as they are: nothing is smoothed that the model does not see smooth."""
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    return Image.fromarray(picture).resize(side, Image.Resampling.NEAREST)


def _fitting(text: str) -> str:
    """What fits under a cell; a key's end tells more than its beginning. The sheet's font has no
    more than Latin letters."""
    text = text.encode("latin-1", errors="replace").decode("latin-1")
    most = THUMBNAIL_SIDE // 6
    return text if len(text) <= most else "..." + text[-(most - 3) :]
