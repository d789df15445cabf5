from __future__ import annotations

import torch
from transformers.models.sam.modeling_sam import SamVisionModel

from vltrain.models.pixels import pixel_view
from vltrain.models.vision import SamTower


def _images(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8)


def test_sam_states_are_those_of_transformers(tiny, build):
    tower = build(tiny).tower("sam")
    assert isinstance(tower, SamTower)
    stock = SamVisionModel(tower.config).eval()
    stock.vision_encoder.load_state_dict(tower.state_dict())
    pixels = pixel_view(tiny, part="sam", images=_images(2), dtype=torch.float32)
    with torch.no_grad():
        expected = stock(pixels, output_hidden_states=True)
        found = tower(pixels)
    torch.testing.assert_close(found["sam_last"], expected.last_hidden_state)
    # hidden_states[0] is the embedding; the first global block is number 1
    torch.testing.assert_close(found["sam_first_global"], expected.hidden_states[2])


def test_frozen_features_build_no_graph_and_do_not_depend_on_chunks(tiny, build):
    built = build(tiny, trainable=["adaptor"])
    images = _images(3)
    whole = built.frozen.encode(images)
    tiny.encode_images_at_once = 2
    chunked = built.frozen.encode(images)
    assert set(whole) == {"sam_last", "sam_first_global", "siglip"}
    for name, feature in whole.items():
        assert not feature.requires_grad
        torch.testing.assert_close(feature, chunked[name])
    assert not any(p.requires_grad for p in built.frozen.parameters())


def test_a_trained_tower_gets_pixels(tiny, build):
    features = build(tiny, trainable=["siglip"]).frozen.encode(_images(2))
    assert {name: tuple(f.shape) for name, f in features.items()} == {
        "siglip_pixels": (2, 3, 32, 32),
        "sam_last": (2, 16, 8, 8),
        "sam_first_global": (2, 8, 8, 32),
    }


def test_no_image_has_the_shapes_of_images(tiny, build):
    built = build(tiny, trainable=["adaptor"])
    none, one = built.frozen.encode(_images(0)), built.frozen.encode(_images(1))
    for name, feature in none.items():
        assert feature.shape == (0, *one[name].shape[1:])


def test_no_image_has_the_shapes_of_images_where_the_adaptor_owns_the_neck(config_of, build):
    built = build(config_of("tiny", {"adaptor": {"train_sam_neck": True}}), trainable=["adaptor"])
    none, one = built.frozen.encode(_images(0)), built.frozen.encode(_images(1))
    for name, feature in none.items():
        assert feature.shape == (0, *one[name].shape[1:])
