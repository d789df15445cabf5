"""Read pieces in, one MicroBatch out: rows, segments, shifted targets, image positions.

Pieces lie in a row where the plan put them. A hole (a record found bad while reading) keeps its
place as padding, so that nothing is packed again and every rank still agrees on shapes. Targets
are shifted here, inside each piece: no position ever predicts the first token of the next one.
Costs a few copies of the ids. Shapes: B rows, T tokens (the longest row, up to a multiple of 8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import get_worker_info

from vltrain.batch import (
    IGNORE,
    Example,
    Fault,
    MicroBatch,
    MicroBatchPlan,
    Modality,
    Origin,
    PieceRef,
)
from vltrain.data.digest import pack_digest
from vltrain.errors import DataError

ROW_MULTIPLE = 8
"""T is a multiple of this: matrix units want it, and fewer distinct shapes are seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadPiece:
    """A planned piece as read. example: None for a hole, which then has a fault. squares: uint8
    (k, S, S, 3) for each image of the example. modality: of the piece's source."""

    ref: PieceRef
    origin: Origin
    modality: Modality
    example: Example | None
    squares: tuple[np.ndarray, ...] = ()
    fault: Fault | None = None


def check_piece(ref: PieceRef, example: Example, *, image_token_id: int) -> None:
    """Raise DataError where a piece is not what was planned, or its placeholders are not what its
    images need: training on would put features in the wrong places without a sign."""
    read = (
        len(example.ids),
        example.num_supervised,
        int(example.image_tokens.sum()),
        len(example.images),
    )
    planned = (ref.tokens, ref.supervised, ref.image_tokens, ref.images)
    if read != planned:
        raise DataError(
            f"{example.origin}: (tokens, supervised, image tokens, images) were planned as "
            f"{planned}, but {read} were read: the token sidecar is not of this shard and "
            "encoder; run launch/prepare.py again"
        )
    placeholders = np.flatnonzero(example.ids == image_token_id)
    spans = _image_positions(example)
    if not np.array_equal(placeholders, spans):
        raise DataError(
            f"{example.origin}: {len(placeholders)} image placeholders in the ids, but its "
            f"{len(example.images)} images need {len(spans)}"
            + (", elsewhere" if len(placeholders) == len(spans) else "")
        )


def collate(
    plan: MicroBatchPlan,
    rows: Sequence[Sequence[ReadPiece]],
    *,
    image_token_id: int,
    image_side: int,
) -> MicroBatch:
    """One micro-batch of ``plan.packs``, whose pieces are ``rows``, in order.

    A plan without packs gives one blank row, so that every rank has something to run. Raises
    DataError as ``check_piece`` does.
    """
    assert len(rows) == len(plan.packs), (len(rows), len(plan.packs))
    num_rows = max(1, len(rows))
    longest = max((pack.tokens for pack in plan.packs), default=1)
    length = -(-max(1, longest) // ROW_MULTIPLE) * ROW_MULTIPLE
    ids = np.zeros((num_rows, length), dtype=np.int64)
    positions = np.zeros((num_rows, length), dtype=np.int64)
    segments = np.zeros((num_rows, length), dtype=np.int32)
    targets = np.full((num_rows, length), IGNORE, dtype=np.int64)
    image_positions: list[np.ndarray] = []
    squares: list[np.ndarray] = []
    grids: list[tuple[int, int]] = []
    image_tokens: list[np.ndarray] = []
    num_targets = {modality.value: 0 for modality in Modality}
    num_tokens = {modality.value: 0 for modality in Modality}
    for row, pieces in enumerate(rows):
        start = 0
        for segment, piece in enumerate(pieces, start=1):
            end = start + piece.ref.tokens
            if piece.example is not None:
                check_piece(piece.ref, piece.example, image_token_id=image_token_id)
                ids[row, start:end] = piece.example.ids
                positions[row, start:end] = np.arange(end - start)
                segments[row, start:end] = segment
                targets[row, start : end - 1] = _shifted_targets(piece.example)
                image_positions.append(row * length + start + _image_positions(piece.example))
                squares.extend(piece.squares)
                grids.extend(image.grid for image in piece.example.images)
                image_tokens.append(piece.example.image_tokens)
                num_targets[piece.modality.value] += piece.example.num_supervised
                num_tokens[piece.modality.value] += end - start
            start = end
    return MicroBatch(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        segments=torch.from_numpy(segments),
        targets=torch.from_numpy(targets),
        image_positions=torch.from_numpy(_joined(image_positions)),
        images=_stacked(squares, side=image_side),
        grids=torch.tensor(grids, dtype=torch.int64).view(-1, 2),
        image_tokens=torch.from_numpy(_joined(image_tokens).astype(np.int64)),
        num_targets=num_targets,
        num_tokens=num_tokens,
        num_images=len(grids),
        pack_numbers=tuple(pack.number for pack in plan.packs),
        pack_digests=tuple(
            _digest(pack.number, pieces) for pack, pieces in zip(plan.packs, rows, strict=True)
        ),
        origins=tuple(tuple(piece.origin for piece in pieces) for pieces in rows),
        faults=tuple(piece.fault for pieces in rows for piece in pieces if piece.fault),
    )


def _shifted_targets(example: Example) -> np.ndarray:
    """int64 (n - 1,): what positions 0..n-2 must predict, or IGNORE."""
    return np.where(example.learned[1:], example.ids[1:], IGNORE).astype(np.int64)


def _image_positions(example: Example) -> np.ndarray:
    """int64: position of every placeholder in the piece, image by image."""
    spans = [
        np.arange(start, start + count, dtype=np.int64)
        for start, count in zip(example.image_starts, example.image_tokens, strict=True)
    ]
    return _joined(spans)


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64)


def _stacked(squares: list[np.ndarray], *, side: int) -> torch.Tensor:
    """uint8 (n, S, S, 3); n may be 0. A worker puts them where the trainer reads them from (as
    torch's own collation does): touching as much memory again costs a quarter of their decoding."""
    images = torch.empty(0, dtype=torch.uint8)
    if not squares:
        return images.view(0, side, side, 3)
    number = sum(map(len, squares))
    size = number * side * side * 3
    if get_worker_info() is None:
        images = torch.empty(size, dtype=torch.uint8)
    else:
        images.set_(torch.UntypedStorage._new_shared(size))
    images = images.view(number, side, side, 3)
    np.concatenate(squares, out=images.numpy())
    return images


def _digest(number: int, pieces: Sequence[ReadPiece]) -> bytes:
    described = [
        (str(piece.origin), None, ())
        if piece.example is None
        else (str(piece.origin), piece.example.ids, [i.data for i in piece.example.images])
        for piece in pieces
    ]
    return pack_digest(number, described)
