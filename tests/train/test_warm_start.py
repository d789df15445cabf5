"""The warm start's objectives on a tiny model: what the towers are asked for; both learn."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from model_yaml import model_config

from vltrain.batch import IGNORE, MicroBatch
from vltrain.models.build import BuiltModel, build_model
from vltrain.train.warm_start import NextToken, TowersApart, warm_up


@pytest.fixture
def model(request: pytest.FixtureRequest) -> BuiltModel:
    return build(request, "tiny")


def build(request: pytest.FixtureRequest, name: str) -> BuiltModel:
    config = model_config(name)
    return build_model(
        config,
        trainable=config.parts,
        freeze=(),
        dtype=torch.float32,
        frozen_dtype=torch.float32,
        device="cpu",
        seed=0,
    )


def captions(model: BuiltModel, *targets: list[int]) -> MicroBatch:
    """One picture and one caption to a row; row i's picture is red, green or blue noise."""
    config = model.config
    tokens = (config.siglip.image_size // config.siglip.patch_size) ** 2
    length = tokens + max(map(len, targets))
    ids = torch.zeros(len(targets), length, dtype=torch.int64)
    wanted = torch.full((len(targets), length), IGNORE)
    for row, caption in enumerate(targets):
        ids[row, :tokens] = config.image_token_id
        ids[row, tokens : tokens + len(caption)] = torch.tensor(caption)
        wanted[row, tokens - 1 : tokens - 1 + len(caption)] = torch.tensor(caption)
    side = config.sam.image_size if config.sam is not None else config.siglip.image_size
    noise = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (len(targets), side, side, 3), generator=noise, dtype=torch.uint8)
    for row in range(len(targets)):
        pixels[row, :, :, row % 3] = 255
    return MicroBatch(
        ids=ids,
        positions=torch.arange(length).expand(len(targets), length).contiguous(),
        segments=torch.ones_like(ids, dtype=torch.int32),
        targets=wanted,
        image_positions=(ids == config.image_token_id).flatten().nonzero()[:, 0],
        images=pixels,
        grids=torch.zeros(len(targets), 2, dtype=torch.int64),
        image_tokens=torch.full((len(targets),), 16),
        num_targets={"language": 0, "multimodal": sum(map(len, targets))},
        num_tokens={"language": 0, "multimodal": int((ids != 0).sum())},
        num_images=len(targets),
        pack_numbers=tuple(range(len(targets))),
        pack_digests=(bytes(16),) * len(targets),
        origins=((),) * len(targets),
    )


def test_each_picture_is_asked_for_the_words_of_its_own_caption(model: BuiltModel) -> None:
    objective = TowersApart(model)
    wanted = objective.words(captions(model, [7, 9], [7, 7, 8]))
    # Documents: 2; token 7 in both, 8 and 9 in one. idf = log((1 + 2) / (1 + count)).
    assert wanted[0].nonzero().flatten().tolist() == [7, 9]
    assert wanted[1].nonzero().flatten().tolist() == [7, 8]
    rare, common = math.log(3 / 2), 1e-3  # log(3 / 3) = 0, held above zero
    assert wanted[0, 9].item() == pytest.approx(rare / (rare + common), rel=1e-5)
    assert wanted[0, 7].item() == pytest.approx(common / (rare + common), rel=1e-4)
    assert wanted.sum(1).tolist() == pytest.approx([1.0, 1.0])


def test_two_pictures_in_a_row_share_its_words(model: BuiltModel) -> None:
    batch = captions(model, [7, 9], [8])
    tokens = len(batch.image_positions) // 2
    batch = replace(batch, image_positions=batch.image_positions[:tokens].repeat(2))
    wanted = TowersApart(model).words(batch)
    assert torch.equal(wanted[0], wanted[1])
    assert wanted[0].nonzero().flatten().tolist() == [7, 9]


def test_the_towers_learn_to_tell_pictures_apart_and_nothing_else_moves(model: BuiltModel) -> None:
    batch = captions(model, [7], [8], [9])
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    losses: list[float] = []
    warm_up(
        TowersApart(model),
        batches=iter([batch] * 200),
        steps=160,
        lr=3e-3,
        report=lambda step, loss: losses.append(loss),
    )
    assert len(losses) == 160
    assert losses[0] > math.log(100)  # guessing among the vocabulary
    assert losses[-1] < 0.9  # told apart; pictures that look alike leave log 3 = 1.1
    moved = {n.split(".")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"sam", "siglip"}


def test_a_tiled_models_tower_sees_the_whole_of_each_picture(request) -> None:
    """The first picture has two tiles and so three squares and more tokens than the second."""
    model = build(request, "tiny_vl2")
    batch = captions(model, [7], [8])
    length = batch.ids.shape[1]
    squares = batch.images[[0, 1, 1, 1]]
    squares[1:3] = 0
    tiled = replace(
        batch,
        images=squares,
        grids=torch.tensor([[2, 1], [0, 0]]),
        image_positions=torch.tensor([0, 1, 2, length]),
        image_tokens=torch.tensor([3, 1]),
    )
    objective = TowersApart(model)
    assert objective.words(tiled)[:, 7:9].argmax(1).tolist() == [0, 1]
    plain = replace(batch, image_positions=torch.tensor([0, length]), image_tokens=torch.ones(2))
    plain = replace(plain, image_tokens=plain.image_tokens.long())
    assert TowersApart(model).sam is None
    torch.manual_seed(0)
    first = TowersApart(model)(tiled)
    torch.manual_seed(0)
    assert torch.equal(first, TowersApart(model)(plain))


def test_the_language_model_learns_the_next_token(model: BuiltModel) -> None:
    batch = captions(model, [7, 8, 9])
    losses: list[float] = []
    warm_up(
        NextToken(model),
        batches=iter([batch] * 40),
        steps=40,
        lr=3e-3,
        report=lambda step, loss: losses.append(loss),
    )
    vocabulary = model.config.language.vocab_size
    assert losses[0] == pytest.approx(math.log(vocabulary), rel=0.2)  # mean per target
    assert losses[-1] < 1.0
