"""Whether weights are numbers: what is checked wherever they are written."""

from __future__ import annotations

import torch
from torch import Tensor


def all_finite(values: Tensor) -> bool:
    """Whether every element is finite (one pass, without a copy). values: on the CPU."""
    if not values.numel():
        return True
    low, high = torch.aminmax(values)
    return bool(torch.isfinite(low) and torch.isfinite(high))


def count_not_finite(values: Tensor) -> int:
    """Elements that are not finite."""
    return int(values.numel() - torch.isfinite(values).sum())
