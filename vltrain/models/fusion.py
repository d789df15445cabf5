"""Placeholders and features: where the pictures enter the sequence.

In: token embeddings, image embeddings and the flat positions of their placeholders, image by
image in reading order (how many an image has may differ). Out: embeddings with the placeholders'
rows replaced. Every position is given by the collator, so nothing searches for an id and a user's
text can never attract a feature.
"""

from __future__ import annotations

from torch import Tensor

from vltrain.errors import DataError


def fuse(embeds: Tensor, *, images: Tensor, image_positions: Tensor) -> Tensor:
    """embeds (B, T, d), images (n, tokens, d) or (all tokens, d), image_positions int64 (all
    tokens,) into B * T -> (B, T, d).

    Raises DataError where the two counts differ.
    """
    rows = images.flatten(0, -2)
    if len(rows) != len(image_positions):
        raise DataError(
            f"the images of the batch give {len(rows)} features but it has "
            f"{len(image_positions)} placeholders. Run launch/prepare.py again if the tokenizer, "
            "template or image geometry has changed"
        )
    flat = embeds.flatten(0, 1)
    return flat.index_copy(0, image_positions, rows.to(flat.dtype)).view_as(embeds)
