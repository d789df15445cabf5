"""Activation checkpointing by part: the same gradients, and what is computed again."""

from __future__ import annotations

import pytest
import torch
from model_choices import overrides
from torch.utils.flop_counter import FlopCounterMode

from vltrain.errors import ConfigError
from vltrain.models.config import Recompute
from vltrain.models.recompute import recompute_layers, recomputed

TRAINS = {
    "siglip_dinov2": ["siglip", "vit", "adaptor", "language"],
    "siglip_sam": ["sam", "siglip", "adaptor", "language"],
}


@pytest.fixture
def passed(config_of, build, pack):
    """``passed(encoder, {part: how})``: gradients by name, and operations counted by module of the
    model, of one forward and backward pass."""

    def run(encoder: str, recompute: dict[str, str]):
        choice = overrides(encoder, "shared") | {"activation_checkpointing": recompute}
        config = config_of("tiny", choice)
        built = build(config, trainable=TRAINS[encoder])
        batch = pack(config, [[(10, 1), (7, 0)]])
        with FlopCounterMode(display=False) as counter:
            batch.run(built).backward()
        gradients = {n: p.grad for n, p in built.module.named_parameters() if p.requires_grad}
        return gradients, counter.get_total_flops()

    return run


@pytest.mark.parametrize(
    ("encoder", "part"),
    [("siglip_dinov2", part) for part in TRAINS["siglip_dinov2"]] + [("siglip_sam", "sam")],
)
def test_every_part_gives_the_same_gradients(passed, encoder, part):
    expected, once = passed(encoder, {})
    for how in ("selective", "full"):
        found, flops = passed(encoder, {part: how})
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
        if how == "selective":
            assert flops == once  # no product is computed again
        else:
            assert flops > once


def test_all_parts_at_once(passed):
    expected, _ = passed("siglip_dinov2", {})
    found, _ = passed("siglip_dinov2", dict.fromkeys(TRAINS["siglip_dinov2"], "full"))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_without_gradients_nothing_is_set_aside():
    calls = []
    with torch.no_grad():
        found = recomputed(lambda x: calls.append(1) or x * 2, torch.ones(1), how=Recompute.full)
    assert found.item() == 2
    assert calls == [1]


def test_a_frozen_tower_keeps_nothing_whatever_is_asked(config_of, build):
    choice = overrides("siglip_sam", "shared") | {
        "activation_checkpointing": {"sam": "full", "siglip": "selective"}
    }
    built = build(config_of("tiny", choice), trainable=["adaptor"])
    features = built.frozen.encode(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    assert not any(feature.requires_grad for feature in features.values())


def test_a_tower_without_layers_to_recompute_is_refused():
    tower = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"activation_checkpointing\.vit=full: Sequential has no"):
        recompute_layers(tower, how=Recompute.full, part="vit")
    recompute_layers(tower, how=Recompute.none, part="vit")
