from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vltrain.models.pixels import pixel_view


def test_high_view_is_normalised_by_hand(tiny):
    images = torch.full((1, 64, 64, 3), 255, dtype=torch.uint8)
    images[0, 0, 0] = torch.tensor([0, 51, 102], dtype=torch.uint8)
    view = pixel_view(tiny, part="sam", images=images, dtype=torch.float32)
    assert view.shape == (1, 3, 64, 64)
    # (1 - mean) / std and (x / 255 - mean) / std with CLIP's numbers
    assert view[0, :, 5, 5].tolist() == pytest.approx([1.930336, 2.074884, 2.145897], abs=1e-5)
    assert view[0, :, 0, 0].tolist() == pytest.approx([-1.792263, -0.986701, -0.029773], abs=1e-5)


def test_low_view_is_within_two_levels_of_the_published_path(tiny):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    square = Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC)
    published = np.asarray(square.resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float32)
    images = torch.from_numpy(np.asarray(square).copy())[None]
    view = pixel_view(tiny, part="siglip", images=images, dtype=torch.float32)
    assert view.shape == (1, 3, 32, 32)
    levels = (view[0].permute(1, 2, 0).numpy() * 0.5 + 0.5) * 255
    assert np.abs(levels - published).max() <= 2


def test_siglip_alone_reads_the_square_as_it_is(siglip_only):
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    view = pixel_view(siglip_only, part="siglip", images=images, dtype=torch.float32)
    torch.testing.assert_close(view, images.permute(0, 3, 1, 2) / 255 * 2 - 1, rtol=0, atol=1e-6)


def test_no_image_gives_an_empty_view_of_the_right_shape(tiny):
    images = torch.zeros((0, 64, 64, 3), dtype=torch.uint8)
    view = pixel_view(tiny, part="siglip", images=images, dtype=torch.bfloat16)
    assert view.shape == (0, 3, 32, 32)
    assert view.dtype == torch.bfloat16
