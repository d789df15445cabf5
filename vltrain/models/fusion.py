"""Placeholders and features: where the pictures enter the sequence.

In: token embeddings, image embeddings and the flat positions of their placeholders, image by
image in reading order. Out: embeddings with the placeholders' rows replaced. Every position is
given by the collator, so nothing searches for an id and a user's text can never attract a
feature.
"""

from __future__ import annotations

from torch import Tensor

from vltrain.errors import DataError


def fuse(embeds: Tensor, *, images: Tensor, image_positions: Tensor) -> Tensor:
    """embeds (B, T, d), images (n, tokens, d), image_positions int64 (n * tokens,) into B * T
    -> (B, T, d).

    Raises DataError where the two counts differ.
    """
    rows = images.flatten(0, 1)
    if len(rows) != len(image_positions):
        raise DataError(
            f"{len(images)} images give {len(rows)} features but the batch has "
            f"{len(image_positions)} placeholders; expected {images.shape[1]} per image. Run "
            "launch/prepare.py again if the tokenizer, template or image geometry has changed"
        )
    flat = embeds.flatten(0, 1)
    return flat.index_copy(0, image_positions, rows.to(flat.dtype)).view_as(embeds)
