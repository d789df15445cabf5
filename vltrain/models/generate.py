"""Greedy generation with a key-value cache, for evaluation and for asking the model.

In: prompts as ids with image placeholders expanded, and their images. Out: the answers' ids.
Prompts of different lengths share a batch by padding on the left. One forward over the prompts,
then one token per row and step; a row that has ended is carried along until all have. Sampling,
beams and speculative decoding are left to the exported model in stock transformers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from vltrain.models.language import segment_mask
from vltrain.models.model import VisionLanguageModel
from vltrain.models.vision import FrozenTowers


@torch.no_grad()
def generate(
    model: VisionLanguageModel,
    *,
    frozen: FrozenTowers,
    prompts: Sequence[Sequence[int]],
    images: Tensor,
    grids: Tensor,
    image_token_id: int,
    end_id: int,
    max_new_tokens: int,
) -> list[list[int]]:
    """The most likely continuation of each prompt, up to ``end_id`` (left out) or
    ``max_new_tokens``.

    images: uint8 (n, S, S, 3), the squares of all prompts' images in reading order; grids: int64
    (images, 2), see ``MicroBatch``. Raises DataError if their number does not fit the placeholders
    in ``prompts``.
    """
    language = model.language
    device = language.lm_head.weight.device
    ids, real = _pad_left(prompts, device=device)
    positions = (real.long().cumsum(1) - 1).clamp(min=0)
    image_positions = (ids == image_token_id).flatten().nonzero().squeeze(1)
    cache = DynamicCache()
    features = {**frozen.encode(images), "grids": grids}
    embeds = model.embed(ids, image_positions, features)
    hidden = language(embeds, positions, segment_mask(real.int()), cache)
    last = positions[:, -1]
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    steps: list[Tensor] = []
    for number in range(max_new_tokens):
        token = language.lm_head(hidden[:, -1]).argmax(-1).masked_fill(ended, end_id)
        steps.append(token)
        ended = ended | (token == end_id)
        if number + 1 == max_new_tokens or bool(ended.all()):
            break
        real = torch.cat((real, torch.ones_like(real[:, :1])), dim=1)
        last = last + 1
        hidden = language(language.embed(token[:, None]), last[:, None], real[:, None, None], cache)
    rows = torch.stack(steps, dim=1).tolist() if steps else [[] for _ in prompts]
    return [row[: row.index(end_id)] if end_id in row else row for row in rows]


def _pad_left(prompts: Sequence[Sequence[int]], *, device: torch.device) -> tuple[Tensor, Tensor]:
    """ids int64 (B, T), 0 at padding, and real bool (B, T)."""
    length = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), length, dtype=torch.int64)
    real = torch.zeros(len(prompts), length, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(list(prompt), dtype=torch.int64)
        real[row, length - len(prompt) :] = True
    return ids.to(device), real.to(device)
