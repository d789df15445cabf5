"""What is evaluated, and how examples become what it reads.

In: encoded examples of single records. Out: padded rows and picture features. Rows are not
packed: each holds one record, so that a row's loss is that record's. Cost: padding to the longest
of the batch (callers sort by length), and one pass of the frozen towers per picture. Rejected:
planning held-out data as training steps; evaluation needs each record by itself, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from vltrain.batch import IGNORE, Example
from vltrain.models.build import BuiltModel
from vltrain.models.generate import generate
from vltrain.processing.images import Rounding
from vltrain.processing.tile_images import squares_of

Item = TypeVar("Item")


class Scorer(Protocol):
    """The trained module, as far as evaluation needs it."""

    def row_losses(
        self,
        ids: Tensor,
        positions: Tensor,
        segments: Tensor,
        targets: Tensor,
        image_positions: Tensor,
        features: dict[str, Tensor],
    ) -> Tensor:
        """Sum of token losses of each row, fp32 (B,)."""
        ...


class ImageEncoder(Protocol):
    """The towers: squares, uint8 (n, S, S, 3) -> features with first dimension n."""

    def encode(self, images: Tensor) -> dict[str, Tensor]: ...


class Generator(Protocol):
    """Greedy answers: one list of new ids per prompt, the end token and what follows it left
    out."""

    def __call__(
        self, prompts: Sequence[Example], *, images: Tensor, max_new_tokens: int
    ) -> list[list[int]]: ...


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One loaded model. image_side: side of the squares it reads, pixels. pad_color: RGB, 0 to 255;
    a blanked picture is a square of it. rounding: of scaled pictures, as it was trained."""

    scorer: Scorer
    towers: ImageEncoder
    generate: Generator
    device: torch.device
    image_side: int
    pad_color: tuple[int, int, int]
    rounding: Rounding

    def squares(self, example: Example) -> np.ndarray:
        """The squares of the example's pictures, uint8 (m, S, S, 3): of each the whole, then its
        tiles. Raises RecordFault for one that is damaged."""
        squares = [
            squares_of(
                image,
                side=self.image_side,
                pad_color=self.pad_color,
                rounding=self.rounding,
                mode="exact",
            )
            for image in example.images
        ]
        return np.concatenate([self._none(), *squares])

    def pictures(self, squares: Sequence[np.ndarray], *, blank: bool) -> Tensor:
        """All of ``squares`` in order, uint8 (n, S, S, 3); ``blank`` paints them over."""
        pictures = np.concatenate([self._none(), *squares])
        if blank:
            pictures[:] = np.asarray(self.pad_color, np.uint8)
        return torch.from_numpy(pictures)

    @torch.no_grad()
    def features(
        self, examples: Sequence[Example], squares: Sequence[np.ndarray], *, blank: bool
    ) -> dict[str, Tensor]:
        """What the towers make of the ``pictures`` of ``examples``, with their grids."""
        features = self.towers.encode(self.pictures(squares, blank=blank))
        return {**features, "grids": grids_of(examples)}

    @torch.no_grad()
    def losses(self, examples: Sequence[Example], *, features: dict[str, Tensor]) -> np.ndarray:
        """Sum of token losses of each example, float64 (B,), nats."""
        rows = make_rows(examples)
        losses = self.scorer.row_losses(
            rows.ids.to(self.device),
            rows.positions.to(self.device),
            rows.segments.to(self.device),
            rows.targets.to(self.device),
            rows.image_positions.to(self.device),
            features,
        )
        return losses.double().cpu().numpy()

    def _none(self) -> np.ndarray:
        """No square, uint8 (0, S, S, 3)."""
        return np.empty((0, self.image_side, self.image_side, 3), np.uint8)


def grids_of(examples: Sequence[Example]) -> Tensor:
    """Columns and rows of every image's tiles, in reading order: int64 (images, 2)."""
    grids = [image.grid for example in examples for image in example.images]
    return torch.tensor(grids, dtype=torch.int64).view(-1, 2)


def subject_of(built: BuiltModel, *, end_id: int) -> Subject:
    """A built model (weights loaded) as a subject; its modules are put into evaluation mode.
    ``end_id``: the token that ends an answer."""
    built.module.eval()
    config = built.config

    def answer(
        prompts: Sequence[Example], *, images: Tensor, max_new_tokens: int
    ) -> list[list[int]]:
        return generate(
            built.module,
            frozen=built.frozen,
            prompts=[prompt.ids.tolist() for prompt in prompts],
            images=images,
            grids=grids_of(prompts),
            image_token_id=config.image_token_id,
            end_id=end_id,
            max_new_tokens=max_new_tokens,
        )

    red, green, blue = config.pad_color
    return Subject(
        scorer=built.module,
        towers=built.frozen,
        generate=answer,
        device=next(built.module.parameters()).device,
        image_side=config.image_side,
        pad_color=(red, green, blue),
        rounding=config.image_rounding.value,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """As in ``MicroBatch``: one example a row, B rows padded to T tokens."""

    ids: Tensor
    positions: Tensor
    segments: Tensor
    targets: Tensor
    image_positions: Tensor


def make_rows(examples: Sequence[Example]) -> Rows:
    """Examples to rows padded on the right to the longest."""
    shape = (len(examples), max(len(e.ids) for e in examples))
    ids = np.zeros(shape, np.int64)
    positions = np.zeros(shape, np.int64)
    segments = np.zeros(shape, np.int32)
    targets = np.full(shape, IGNORE, np.int64)
    image_positions = [np.empty(0, np.int64)]
    for row, example in enumerate(examples):
        length = len(example.ids)
        ids[row, :length] = example.ids
        positions[row, :length] = np.arange(length)
        segments[row, :length] = 1
        targets[row, : length - 1] = np.where(example.learned[1:], example.ids[1:], IGNORE)
        for start, count in zip(example.image_starts, example.image_tokens, strict=True):
            image_positions.append(row * shape[1] + start + np.arange(count, dtype=np.int64))
    return Rows(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        segments=torch.from_numpy(segments),
        targets=torch.from_numpy(targets),
        image_positions=torch.from_numpy(np.concatenate(image_positions)),
    )


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of at most ``size`` items, in order."""
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch
