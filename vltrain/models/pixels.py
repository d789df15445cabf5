"""Padded uint8 squares to what each tower reads, on the device.

In: what a worker hands over, uint8 (n, S, S, 3). Out: one float view per tower, (n, 3, side, side),
normalised with that tower's mean and standard deviation. The low-resolution view is made from the
un-normalised padded square by an antialiased bilinear resize, as published (facts 1.9); against the
published path, which resizes on 8-bit pixels, it differs by at most 2/255.
Cost: one float32 copy of the images at a time; rejected: float32 from the workers (4x the traffic).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vltrain.models.config import ModelConfig


def pixel_view(config: ModelConfig, *, part: str, images: Tensor, dtype: torch.dtype) -> Tensor:
    """The view of tower ``part``.

    images: uint8 (n, S, S, 3) on any device; n may be 0. Returns ``dtype`` (n, 3, side, side)
    there.
    """
    side, mean, std = _view(config, part=part)
    assert images.dtype == torch.uint8, f"images are uint8 squares, not {images.dtype}"
    pixels = images.permute(0, 3, 1, 2).float() / 255
    if pixels.shape[-1] != side and len(pixels) > 0:
        pixels = F.interpolate(
            pixels, size=(side, side), mode="bilinear", antialias=True, align_corners=False
        )
    if len(pixels) == 0:
        return pixels.new_zeros((0, 3, side, side), dtype=dtype)
    mean_ = pixels.new_tensor(mean).view(3, 1, 1)
    std_ = pixels.new_tensor(std).view(3, 1, 1)
    return ((pixels - mean_) / std_).to(dtype)


def _view(config: ModelConfig, *, part: str) -> tuple[int, Sequence[float], Sequence[float]]:
    """Side in pixels, mean and deviation of what a tower reads."""
    if part == "vit":
        assert config.vit is not None, "no vit in this model"
        return config.vit.image_size, config.vit.mean, config.vit.std
    if part == "sam":
        assert config.sam is not None, "no SAM in this model"
        return config.sam.image_size, config.sam_mean, config.sam_std
    assert config.siglip is not None, "no SigLIP in this model"
    return config.siglip.image_size, config.siglip_mean, config.siglip_std
