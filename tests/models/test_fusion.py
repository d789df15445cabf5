from __future__ import annotations

import pytest
import torch

from vltrain.errors import DataError
from vltrain.models.fusion import fuse


def test_rows_go_to_their_positions_in_reading_order():
    embeds = torch.zeros(2, 4, 1)
    images = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    positions = torch.tensor([1, 2, 6, 7])
    assert fuse(embeds, images=images, image_positions=positions)[..., 0].tolist() == [
        [0, 1, 2, 0],
        [0, 0, 3, 4],
    ]
    assert embeds.sum() == 0


def test_a_tampered_count_names_both_numbers():
    with pytest.raises(DataError, match="give 2 features but it has 3 placeholders"):
        fuse(torch.zeros(1, 4, 1), images=torch.ones(1, 2, 1), image_positions=torch.arange(3))
