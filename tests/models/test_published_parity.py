"""Against transformers' whole models, on the same random weights: features, logits, loss,
gradients."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    DeepseekVLForConditionalGeneration,
    DeepseekVLHybridForConditionalGeneration,
)

from vltrain.batch import IGNORE
from vltrain.models.layouts import published_tensors
from vltrain.models.pixels import pixel_view
from vltrain.models.published import hybrid_config, siglip_only_config


def _stock(built):
    config = built.config
    if config.sam is None:
        stock = DeepseekVLForConditionalGeneration(siglip_only_config(config))
    else:
        stock = DeepseekVLHybridForConditionalGeneration(hybrid_config(config))
    state = dict(built.named_parameters())
    theirs = _theirs(state, stock)
    stock.load_state_dict({theirs[n]: p.detach().clone() for n, p in state.items()}, strict=True)
    return stock.eval()


def _theirs(state, stock):
    """Our name -> theirs."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    stored = published_tensors(shapes, layout=stock.config.model_type)
    return {one.ours[0]: one.theirs for one in stored}


def _pixels(config, images):
    views = {"pixel_values": pixel_view(config, part="siglip", images=images, dtype=torch.float32)}
    if config.sam is not None:
        views["high_res_pixel_values"] = pixel_view(
            config, part="sam", images=images, dtype=torch.float32
        )
    return views


@pytest.fixture(params=["tiny", "siglip_only", "own_neck"])
def pair(request, config_of, build):
    """Ours with everything trainable, and transformers' with the same weights."""
    overrides = {
        "tiny": {},
        "siglip_only": {"sam": None, "adaptor": {"kind": "mlp"}},
        "own_neck": {"adaptor": {"train_sam_neck": True}},
    }[request.param]
    config = config_of("tiny", overrides)
    trainable = ["siglip", "adaptor", "language"] + (["sam"] if config.sam is not None else [])
    built = build(config, trainable=trainable)
    return built, _stock(built)


def test_features_and_logits(pair, pack):
    built, stock = pair
    batch = pack(built.config, [[(14, 2)], [(20, 1)]])
    with torch.no_grad():
        features = built.frozen.encode(batch.images)
        embeds = built.module.embed(batch.ids, batch.image_positions, features)
        found = embeds.flatten(0, 1)[batch.image_positions]
        expected = stock.model.get_image_features(**_pixels(built.config, batch.images))
        torch.testing.assert_close(found, expected.pooler_output.flatten(0, 1), rtol=0, atol=1e-5)
        real = batch.segments > 0
        logits = stock(
            input_ids=batch.ids,
            attention_mask=real.long(),
            position_ids=batch.positions,
            **_pixels(built.config, batch.images),
        ).logits
        torch.testing.assert_close(batch.logits(built)[real], logits[real], rtol=0, atol=1e-5)


def test_loss_and_gradients(pair, pack):
    built, stock = pair
    batch = pack(built.config, [[(14, 2)], [(20, 1)]])
    found = batch.run(built)
    found.backward()
    labels = torch.full_like(batch.targets, IGNORE)
    labels[:, 1:] = batch.targets[:, :-1]
    expected = stock(
        input_ids=batch.ids,
        attention_mask=(batch.segments > 0).long(),
        position_ids=batch.positions,
        labels=labels,
        num_items_in_batch=torch.tensor(1),
        **_pixels(built.config, batch.images),
    ).loss
    expected.backward()
    targets = int((batch.targets != IGNORE).sum())
    assert targets > 20
    assert abs(found.item() - expected.item()) / targets < 1e-5
    gradients = {name: p.grad for name, p in stock.named_parameters()}
    theirs = _theirs(dict(built.module.named_parameters()), stock)
    for name, parameter in built.module.named_parameters():
        expected = gradients[theirs[name]]
        scale = expected.abs().max().clamp(min=1.0)  # key biases' true gradient is zero
        error = ((parameter.grad - expected).abs().max() / scale).item()
        assert error < 1e-5, f"{name}: {error}"
