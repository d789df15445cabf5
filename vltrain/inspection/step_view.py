"""What a planned step holds, as the model would see it.

In: planned steps and the loader's own dataset. Out: a ``StepView`` each: packs, pieces, text with
what is learned of it, small pictures, the step's digest. Everything is taken from the very
micro-batches that training would get (one pack each), so a wrong mask, position or segment shows
here as it is. Pictures are made small at once: one pack is in memory at a time. Cost: reading and
decoding the packs, as in training.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from PIL import Image

from vltrain.batch import (
    IGNORE,
    MicroBatch,
    MicroBatchPlan,
    Modality,
    Origin,
    PackPlan,
    StepPlan,
)
from vltrain.data.digest import step_digest
from vltrain.data.loader import MicroBatchDataset, StepLoader

THUMBNAIL_SIDE = 128
"""Pixels; squares are shown no larger."""

Decode = Callable[[list[int]], str]


class TokenKind(IntEnum):
    """What a column of a row is."""

    padding = 0
    masked = 1  # text that is read, not learned
    learned = 2  # text that some position must predict
    image = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Neighbouring columns of one kind. text: decoded, "" for an image. image: its number in the
    pack, None for text."""

    kind: TokenKind
    tokens: int
    text: str
    image: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PieceView:
    """A piece in its row: columns start..end - 1, whose positions run from first_position to
    last_position. supervised: positions with a target. segment: the number that attention goes by.
    hole: why its record could not be used, "" where it could (its columns are padding then)."""

    origin: Origin
    modality: Modality
    segment: int
    start: int
    end: int
    first_position: int
    last_position: int
    supervised: int
    images: int
    runs: tuple[Run, ...]
    hole: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackView:
    """A pack as read. kinds: uint8 (T,), TokenKind of every column. pictures: uint8 (s, s, 3) each,
    s <= THUMBNAIL_SIDE, in reading order: of each image the whole. grids: columns and rows of its
    tiles, (0, 0) where there are none."""

    plan: PackPlan
    pieces: tuple[PieceView, ...]
    kinds: np.ndarray
    pictures: tuple[np.ndarray, ...]
    grids: tuple[tuple[int, int], ...]
    digest: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class StepView:
    """A step. packs: those that are shown. digest: hex, of the whole step; None where not every
    pack was read."""

    plan: StepPlan
    packs: tuple[PackView, ...]
    digest: str | None

    @property
    def number(self) -> int:
        """1 is the first, as in steps.jsonl."""
        return self.plan.step + 1


def view_steps(
    steps: Iterable[StepPlan],
    *,
    dataset: MicroBatchDataset,
    modalities: tuple[Modality, ...],
    decode: Decode,
    workers: int,
    shown_packs: int,
    read_all: bool,
) -> Iterator[StepView]:
    """A view of each step, its first ``shown_packs`` packs in full.

    modalities: of the sources, in recipe order. read_all: read the other packs too, for the digest
    of a step that has more. Raises DataError as the loader does.
    """

    def single_packs() -> Iterator[tuple[StepPlan, tuple[MicroBatchPlan, ...]]]:
        for step in steps:
            for pack in step.packs if read_all else step.packs[:shown_packs]:
                yield (
                    step,
                    (MicroBatchPlan(step=step.step, micro=0, packs=(pack,), num_slots=1),),
                )

    loader = StepLoader(single_packs(), dataset=dataset, workers=workers, prefetch_steps=1)
    views: list[PackView] = []
    digests: list[bytes] = []
    for step, (batch,) in loader:
        pack = step.packs[len(digests)]
        digests.append(batch.pack_digests[0])
        if len(views) < shown_packs:
            views.append(view_pack(pack, batch, modalities=modalities, decode=decode))
        wanted = len(step.packs) if read_all else min(shown_packs, len(step.packs))
        if len(digests) == wanted:
            is_whole = wanted == len(step.packs)
            yield StepView(
                plan=step,
                packs=tuple(views),
                digest=step_digest(digests) if is_whole else None,
            )
            views, digests = [], []


def view_pack(
    pack: PackPlan, batch: MicroBatch, *, modalities: tuple[Modality, ...], decode: Decode
) -> PackView:
    """The pack that is row 0 of ``batch``."""
    assert batch.pack_numbers == (pack.number,), (batch.pack_numbers, pack.number)
    ids, targets = batch.ids[0].numpy(), batch.targets[0].numpy()
    kinds = _kinds(batch)
    reasons = {fault.origin: f"{fault.reason}: {fault.detail}" for fault in batch.faults}
    pieces: list[PieceView] = []
    start = image = 0
    for ref, origin in zip(pack.pieces, batch.origins[0], strict=True):
        end = start + ref.tokens
        segment = int(batch.segments[0, start])
        positions = batch.positions[0, start:end]
        pieces.append(
            PieceView(
                origin=origin,
                modality=modalities[ref.source],
                segment=segment,
                start=start,
                end=end,
                first_position=int(positions.min()),
                last_position=int(positions.max()),
                supervised=int((targets[start:end] != IGNORE).sum()),
                images=ref.images,
                runs=_runs(
                    ids[start:end],
                    kinds[start:end],
                    image_spans=_image_spans(
                        kinds[start:end], batch.image_tokens[image : image + ref.images].tolist()
                    ),
                    first_image=image,
                    decode=decode,
                ),
                hole="" if segment else reasons.get(origin, "its record could not be used"),
            )
        )
        image += ref.images if segment else 0
        start = end
    assert image == batch.num_images, (image, batch.num_images)
    return PackView(
        plan=pack,
        pieces=tuple(pieces),
        kinds=kinds,
        pictures=tuple(thumbnail(square) for square in batch.whole_images.numpy()),
        grids=tuple((columns, rows) for columns, rows in batch.grids.tolist()),
        digest=batch.pack_digests[0],
    )


def thumbnail(square: np.ndarray) -> np.ndarray:
    """uint8 (s, s, 3), at most THUMBNAIL_SIDE a side, of a square that may be larger."""
    if square.shape[0] <= THUMBNAIL_SIDE:
        return square
    small = Image.fromarray(square).resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return np.asarray(small)


def _kinds(batch: MicroBatch) -> np.ndarray:
    """uint8 (T,) of row 0. A token is learned where the position before it has it as target."""
    kinds = np.where(batch.segments[0].numpy() > 0, TokenKind.masked, TokenKind.padding)
    kinds = kinds.astype(np.uint8)
    predicted = np.flatnonzero(batch.targets[0].numpy() != IGNORE) + 1
    kinds[predicted] = TokenKind.learned
    kinds[batch.image_positions.numpy()] = TokenKind.image
    return kinds


def _image_spans(kinds: np.ndarray, image_tokens: list[int]) -> list[tuple[int, int]]:
    """Columns of each image in the piece: neighbouring images have no token between them, so their
    placeholders are dealt out by ``image_tokens``, each image's count."""
    placeholders = np.flatnonzero(kinds == TokenKind.image)
    if not len(placeholders):  # a hole, or a piece of text
        return []
    spans = np.split(placeholders, np.cumsum(image_tokens)[:-1])
    return [(int(span[0]), int(span[-1]) + 1) for span in spans]


def _runs(
    ids: np.ndarray,
    kinds: np.ndarray,
    *,
    image_spans: list[tuple[int, int]],
    first_image: int,
    decode: Decode,
) -> tuple[Run, ...]:
    """The piece cut where the kind changes, and at every image."""
    if not len(kinds) or kinds[0] == TokenKind.padding:
        return ()
    edges = {0, len(kinds), *(np.flatnonzero(np.diff(kinds)) + 1).tolist()}
    starts = {start: first_image + n for n, (start, _) in enumerate(image_spans)}
    edges |= {edge for span in image_spans for edge in span}
    runs = []
    ordered = sorted(edges)
    for start, end in itertools.pairwise(ordered):
        kind = TokenKind(int(kinds[start]))
        is_image = kind is TokenKind.image
        text = "" if is_image else decode(ids[start:end].tolist())
        runs.append(Run(kind=kind, tokens=end - start, text=text, image=starts.get(start)))
    return tuple(runs)
