"""Image size in, number of image tokens out: the only place that knows how many tokens an image
costs.

The index, the token sidecar, the plan, the encoder and the model's own count all go back to
``image_tokens``; a second formula anywhere else would let them disagree by one and corrupt
silently. Costs nothing. A geometry is a small frozen record whose ``digest_fields`` enter the
sidecar's key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Geometry(Protocol):
    """How an image of some size becomes image tokens."""

    def image_tokens(self, width: int, height: int) -> int:
        """Placeholders of one image of ``width`` x ``height`` pixels (as seen, after
        orientation)."""
        ...

    def digest_fields(self) -> dict[str, str | int]:
        """Everything that the counts depend on, JSON-able."""
        ...


def patch_grid(image_size: int, *, patch_size: int) -> int:
    """Side of the grid of patches of a square view: whole patches only, as a convolution of that
    stride makes them."""
    return image_size // patch_size


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedGeometry:
    """DeepSeek-VL: every image is one padded square, and so always the same number of tokens (576
    at full size, paper 3.1): one for each place of the visual grid, whatever the adaptor. (Those
    that put one tower's tokens after the other's make one of two first, so that it stays so.)"""

    tokens_per_image: int

    @classmethod
    def of_grid(cls, side: int) -> FixedGeometry:
        """``side`` x ``side`` places."""
        return cls(tokens_per_image=side * side)

    def __post_init__(self) -> None:
        assert self.tokens_per_image > 0, self.tokens_per_image

    def image_tokens(self, width: int, height: int) -> int:
        assert min(width, height) > 0, (width, height)
        return self.tokens_per_image

    def digest_fields(self) -> dict[str, str | int]:
        return {"kind": "fixed", "tokens_per_image": self.tokens_per_image}
