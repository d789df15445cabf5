"""Tokens of one or two towers to tokens of the language model's width: the MLPs of Table 10.

In: a list of (n, g * g, C_i), the high-resolution tower first. Out: (n, g * g, width), whatever the
kind, so that no length depends on the choice.

``hybrid_split`` (7B) and ``mlp`` (1.3B) have the released names and shapes. The others follow the
paper's words (4.4, Table 10), which leave open how wide their inner layers are: here a branch of
its own has half the language model's width, as in the released split, and everything joined has all
of it. The pooled kinds stack two neighbours' channels, project each tower by itself, and put one
tower's tokens after the other's before the layer that both share.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vltrain.models.config import AdaptorKind


class MlpAligner(nn.Module):
    """One tower, or the channels of two side by side: linear, GELU, linear."""

    def __init__(self, widths: Sequence[int], *, hidden: int, out: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(sum(widths), hidden)
        self.linear2 = nn.Linear(hidden, out)

    def forward(self, tokens: Sequence[Tensor]) -> Tensor:
        return self.linear2(F.gelu(self.linear1(torch.cat(list(tokens), dim=-1))))


class SplitAligner(nn.Module):
    """A projection each, concatenated high first, GELU, linear."""

    def __init__(self, widths: Sequence[int], *, out: int) -> None:
        super().__init__()
        high, low = widths
        self.vision_proj = nn.Linear(low, out // 2)
        self.high_res_vision_proj = nn.Linear(high, out // 2)
        self.proj = nn.Linear(out // 2 * 2, out)

    def forward(self, tokens: Sequence[Tensor]) -> Tensor:
        high, low = tokens
        halves = (self.high_res_vision_proj(high), self.vision_proj(low))
        return self.proj(F.gelu(torch.cat(halves, dim=-1)))


class SeparateAligner(nn.Module):
    """An MLP each, concatenated high first."""

    def __init__(self, widths: Sequence[int], *, out: int) -> None:
        super().__init__()
        high, low = widths
        half = out // 2
        self.high_res_vision = MlpAligner([high], hidden=half, out=half)
        self.vision = MlpAligner([low], hidden=half, out=half)

    def forward(self, tokens: Sequence[Tensor]) -> Tensor:
        high, low = tokens
        return torch.cat((self.high_res_vision([high]), self.vision([low])), dim=-1)


class PooledAligner(nn.Module):
    """Two neighbours in a row (or column) of each tower become one token; then the high tower's
    tokens, then the low one's."""

    def __init__(self, widths: Sequence[int], *, out: int, grid: int, along_rows: bool) -> None:
        super().__init__()
        high, low = widths
        self.grid, self.along_rows = grid, along_rows
        self.vision_proj = nn.Linear(2 * low, out)
        self.high_res_vision_proj = nn.Linear(2 * high, out)
        self.proj = nn.Linear(out, out)

    def forward(self, tokens: Sequence[Tensor]) -> Tensor:
        high, low = (self._pooled(tower) for tower in tokens)
        sequence = (self.high_res_vision_proj(high), self.vision_proj(low))
        return self.proj(F.gelu(torch.cat(sequence, dim=1)))

    def _pooled(self, tokens: Tensor) -> Tensor:
        """(n, g * g, C) -> (n, g * g / 2, 2 C): the left (upper) neighbour's channels first."""
        n, _, channels = tokens.shape
        pairs = self.grid // 2
        if self.along_rows:  # a row's places lie beside each other
            return tokens.reshape(n, self.grid * pairs, 2 * channels)
        columns = tokens.reshape(n, pairs, 2, self.grid, channels).transpose(2, 3)
        return columns.reshape(n, pairs * self.grid, 2 * channels)


def build_aligner(kind: AdaptorKind, *, widths: Sequence[int], out: int, grid: int) -> nn.Module:
    """The module that ``kind`` names, reading towers of ``widths`` channels (high first)."""
    if kind is AdaptorKind.hybrid_split:
        return SplitAligner(widths, out=out)
    if kind is AdaptorKind.separate:
        return SeparateAligner(widths, out=out)
    if kind in (AdaptorKind.pool_width, AdaptorKind.pool_height):
        along_rows = kind is AdaptorKind.pool_width
        return PooledAligner(widths, out=out, grid=grid, along_rows=along_rows)
    return MlpAligner(widths, hidden=out, out=out)
