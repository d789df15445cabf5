"""The MLP adaptor on SigLIP alone before a language model with experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from moe_samples import VARIANTS

from vltrain.batch import IGNORE
from vltrain.errors import ConfigError
from vltrain.models.build import build_model
from vltrain.models.check import check_model

MOE = {"experts": 8, "per_token": 2, "ffn": 16}
MLA = {"kv_rank": 8, "nope_dim": 8, "rope_dim": 4, "value_dim": 6}
LANGUAGE = {
    "tiny": {"moe": MOE},
    "small": {"moe": MOE, "mla": MLA},
    "base": {
        "moe": MOE
        | {"scoring": "sigmoid", "selection": "noaux_tc", "normalise_weights": True, "scale": 2.0},
        "mla": MLA,
    },
}


@pytest.fixture
def moe(config_of):
    def make(variant: str, **overrides: Any):
        whole = {"sam": None, "adaptor": {"kind": "mlp"}, "language": LANGUAGE[variant]}
        return config_of("tiny", whole | overrides)

    return make


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("images", [0, 1])
@pytest.mark.parametrize("labels", [False, True])
def test_every_trainable_parameter_gets_a_gradient(moe, build, pack, variant, images, labels):
    config = moe(variant, router={"penalty_weight": 0.01})
    built = build(config)
    batch = pack(config, [[(9, images), (5, 0)], [(3, 0)]])
    if not labels:
        batch.targets.fill_(IGNORE)
    batch.run(built).backward()
    assert [n for n, p in built.module.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_the_penalty_moves_the_router_and_not_the_loss(moe, build, pack, variant, recompute):
    losses, gates, heads = [], [], []
    for weight in (0.0, 0.5):
        config = moe(
            variant,
            router={"penalty_weight": weight},
            activation_checkpointing={"language": recompute},
        )
        built = build(config)
        loss = pack(config, [[(12, 1), (7, 0)], [(9, 0)]]).run(built)
        loss.backward()
        losses.append(loss.item())
        gates.append(built.module.get_parameter("language.model.layers.1.mlp.gate.weight").grad)
        heads.append(built.module.get_parameter("language.lm_head.weight").grad)
    assert losses[0] == losses[1]
    assert (gates[0] - gates[1]).abs().max() > 1e-2
    torch.testing.assert_close(heads[0], heads[1])


def test_the_penalty_counts_by_label_tokens(moe, build, pack):
    """So that rows may lie in any micro-batch: the gradients of two rows add up."""
    config = moe("small", router={"penalty_weight": 0.5})
    rows = [[(12, 0), (7, 0)], [(9, 0)]]
    name = "language.model.layers.1.mlp.gate.weight"

    def gradient(part: slice):
        batch = pack(config, rows)
        built = build(config)
        built.module(
            batch.ids[part],
            batch.positions[part],
            batch.segments[part],
            batch.targets[part],
            batch.image_positions,
            built.frozen.encode(batch.images),
        ).backward()
        return built.module.get_parameter(name).grad

    torch.testing.assert_close(
        gradient(slice(0, 1)) + gradient(slice(1, 2)), gradient(slice(0, 2)), rtol=1e-4, atol=1e-5
    )


def test_a_sequences_penalty_weighs_by_its_label_tokens(moe, build, pack):
    """Twice the labels, twice the gradient: divided by the step's labels, a weighted mean."""
    name = "language.model.layers.1.mlp.gate.weight"

    def of_penalty(labels: int):
        gradients = []
        for weight in (0.0, 0.5):
            config = moe("small", router={"penalty_weight": weight})
            built = build(config)
            batch = pack(config, [[(12, 0)]])
            kept = (batch.targets != IGNORE).nonzero()[:labels]
            assert len(kept) == labels
            few = batch.targets.new_full(batch.targets.shape, IGNORE)
            few[tuple(kept.T)] = batch.targets[tuple(kept.T)]
            batch.targets.copy_(few)
            batch.run(built).backward()
            gradients.append(built.module.get_parameter(name).grad)
        return gradients[1] - gradients[0]

    once, twice = of_penalty(4), of_penalty(8)
    assert once.abs().max() > 1e-2
    torch.testing.assert_close(twice, 2 * once, rtol=1e-3, atol=1e-5)
    assert of_penalty(0).abs().max() == 0


def test_loads_are_counted_in_training_alone_and_without_padding(moe, build, pack):
    config = moe("base")
    built = build(config)
    batch = pack(config, [[(12, 0), (7, 0)], [(9, 0)]])
    with torch.no_grad():
        batch.run(built)
    balance = built.module.language.balance
    batch.run(built).backward()
    loads = balance.finish_step(step_size=0.0).loads
    assert [sum(layer) for layer in loads] == [2 * 28]  # the tiny model's second layer


def test_corrections_of_another_step_change_the_choice(moe, build, pack):
    config = moe("base")
    built = build(config)
    batch = pack(config, [[(12, 0)]])
    before = batch.logits(built)
    built.module.language.balance.restore([[5.0] + [0.0] * 7])
    assert (batch.logits(built) - before).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("language", "message"),
    [
        ({"mla": MLA}, "moe is not: latent attention is built with experts only"),
        ({"moe": MOE, "mla": MLA | {"rope_dim": 5}}, "rope_dim is 5: expected an even"),
        ({"moe": MOE, "mla": MLA, "kv_heads": 1}, "kv_heads is 1 and heads 2"),
        ({"moe": MOE | {"per_token": 9}}, "per_token is 9 of 8 experts"),
        ({"moe": MOE | {"experts": 1, "per_token": 1}}, "two experts or more"),
        ({"moe": MOE | {"dense_layers": 2}}, "dense_layers is 2 of 2 layers"),
        ({"moe": MOE | {"shared": 0}}, "shared is 0: expected at least one"),
    ],
)
def test_sizes_that_do_not_fit(config_of, language, message):
    config = config_of("tiny", {"language": language})
    with pytest.raises(ConfigError, match=message):
        build_model(
            config,
            trainable=["adaptor"],
            freeze=[],
            dtype=torch.float32,
            frozen_dtype=torch.float32,
            device="meta",
            seed=0,
        )


@pytest.mark.parametrize(
    ("language", "router", "message"),
    [
        ({}, {"penalty_weight": 0.001}, r"moe is not set: there are no routers to balance"),
        ({}, {"correction_step": 0.001}, r"moe is not set: there are no routers to balance"),
        (
            {"moe": MOE},
            {"correction_step": 0.001},
            r"correction_step is 0\.001 and model\.language\.moe\.selection is greedy",
        ),
    ],
)
def test_balancing_that_nothing_would_do(config_of, language, router, message):
    with pytest.raises(ConfigError, match=message):
        check_model(config_of("tiny", {"language": language, "router": router}))
