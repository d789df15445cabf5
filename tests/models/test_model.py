from __future__ import annotations

import pytest
import torch

from vltrain.batch import IGNORE


@pytest.mark.parametrize(
    "trainable",
    [["adaptor"], ["adaptor", "language"], ["siglip", "adaptor", "language"], ["sam", "adaptor"]],
)
@pytest.mark.parametrize("images", [0, 2])
@pytest.mark.parametrize("labels", [False, True])
def test_every_trainable_parameter_gets_a_gradient(tiny, build, pack, trainable, images, labels):
    """Trap 16: with or without images and labels."""
    built = build(tiny, trainable=trainable)
    batch = pack(tiny, [[(9, images), (5, 0)], [(12, 0)]])
    if not labels:
        batch.targets.fill_(IGNORE)
    loss = batch.run(built)
    loss.backward()
    parameters = dict(built.module.named_parameters())
    assert built.trainable
    assert [n for n in built.trainable if parameters[n].grad is None] == []
    assert [
        n for n, p in parameters.items() if p.grad is not None and n not in built.trainable
    ] == []
    moved = {n for n in built.trainable if parameters[n].grad.abs().sum() > 0}  # type: ignore[union-attr]
    if not labels:
        assert loss.item() == 0
        assert moved == set()
    elif images:
        assert {"adaptor.alpha", "adaptor.neck.conv1.weight"} <= moved
    else:
        assert not any(name.startswith(("adaptor.", "sam.", "siglip.")) for name in moved)


def test_a_blank_image_leaves_the_loss_of_text_alone(tiny, build, pack):
    built = build(tiny)
    batch = pack(tiny, [[(20, 0)]])
    loss = batch.run(built)
    with torch.no_grad():
        for parameter in built.module.adaptor.parameters():
            parameter.mul_(3)
    assert batch.run(built).item() == loss.item()


def test_the_same_modules_run_in_the_same_order_with_and_without_images(tiny, build, pack):
    """Trap 1: so every rank enters the same collectives."""
    built = build(tiny)
    order: list[str] = []
    for name, module in built.module.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: order.append(name))
    pack(tiny, [[(9, 0)]]).run(built)
    text = list(order)
    order.clear()
    pack(tiny, [[(9, 3)]]).run(built)
    assert order == text
    assert text.index("language.model.embed_tokens") < text.index("siglip")


def test_row_losses_add_up_to_the_loss(tiny, build, pack):
    built = build(tiny)
    batch = pack(tiny, [[(9, 1)], [(12, 0)], [(4, 1)]])
    with torch.no_grad():
        rows = built.module.row_losses(
            batch.ids,
            batch.positions,
            batch.segments,
            batch.targets,
            batch.image_positions,
            built.frozen.encode(batch.images),
        )
        total = batch.run(built)
    assert rows.shape == (3,)
    assert (rows > 0).all()
    torch.testing.assert_close(rows.sum(), total)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_autocast_to_bf16_runs_and_is_near(config_of, build, pack, attention):
    """How an engine without bf16 parameters trains in bf16."""
    config = config_of(
        "tiny", {"attention": attention, "activation_checkpointing": {"language": "full"}}
    )
    built = build(config)
    batch = pack(config, [[(14, 2), (9, 0)]])
    exact = batch.run(built).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = batch.run(built)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("trained_tower", ["sam", "siglip"])
def test_bf16_parameters_run_and_are_near(tiny, build, pack, trained_tower):
    built = build(tiny, trainable=[trained_tower, "adaptor", "language"])
    batch = pack(tiny, [[(14, 2), (9, 0)]])
    exact = batch.run(built).item()
    built.module.bfloat16()
    loss = batch.run(built)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=0.02)
