"""The whole tiny DeepSeek-VL2: tiles through the tower, the adaptor and the routers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vltrain.batch import IGNORE
from vltrain.errors import ConfigError, DataError
from vltrain.models.build import BuiltModel, build_model
from vltrain.models.generate import generate
from vltrain.models.language import segment_mask

SIZES = [(10, 10), (60, 30)]  # one tile, two side by side
LENGTH = 128


@pytest.fixture
def tiled(config_of, build) -> BuiltModel:
    return build(config_of("tiny_vl2"))


def inputs(built: BuiltModel, *, images: int) -> dict[str, Tensor | dict[str, Tensor]]:
    """One row with the images of ``SIZES`` after its fifth token."""
    config = built.config
    layouts = [config.geometry.layout(*size, images_in_sample=2) for size in SIZES[:images]]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 512, (1, LENGTH), generator=generator)
    targets = ids.roll(-1, 1)
    targets[:, :115] = IGNORE
    shape = (sum(layout.squares for layout in layouts), 28, 28, 3)
    squares = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    grids = torch.tensor([layout.shape for layout in layouts], dtype=torch.int64).view(-1, 2)
    return {
        "ids": ids,
        "positions": torch.arange(LENGTH)[None],
        "segments": torch.ones(1, LENGTH, dtype=torch.int32),
        "targets": targets,
        "image_positions": torch.arange(5, 5 + sum(layout.tokens for layout in layouts)),
        "features": {**built.frozen.encode(squares), "grids": grids},
    }


@pytest.mark.parametrize("images", [0, 1, 2])
def test_every_trainable_parameter_gets_a_gradient(tiled: BuiltModel, images: int):
    tiled.module(**inputs(tiled, images=images)).backward()
    gradients = {name: p.grad for name, p in tiled.module.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    learned = ("adaptor.image_newline", "adaptor.view_separator", "adaptor.linear1.weight")
    moved = [name for name in learned if gradients[name].abs().sum() > 0]
    assert moved == (list(learned) if images else [])


def test_the_same_modules_run_in_the_same_order_with_and_without_images(tiled: BuiltModel):
    order: list[str] = []
    for name, module in tiled.module.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: order.append(name))
    tiled.module(**inputs(tiled, images=0))
    text = list(order)
    order.clear()
    tiled.module(**inputs(tiled, images=2))
    assert order == text


def test_a_frozen_tower_gives_the_same_features(config_of, build, tiled: BuiltModel):
    frozen = build(config_of("tiny_vl2"), trainable=["adaptor", "language"])
    losses = [built.module(**inputs(built, images=2)).item() for built in (frozen, tiled)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def prompt_of(built: BuiltModel, *, images: int) -> tuple[list[int], Tensor, Tensor]:
    """Three tokens, the placeholders of the first ``images`` of ``SIZES``, a token more for each;
    squares and grids."""
    layouts = [built.config.geometry.layout(*size, images_in_sample=2) for size in SIZES[:images]]
    placeholders = [3] * sum(layout.tokens for layout in layouts)
    shape = (sum(layout.squares for layout in layouts), 28, 28, 3)
    generator = torch.Generator().manual_seed(images)
    squares = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    grids = torch.tensor([layout.shape for layout in layouts], dtype=torch.int64).view(-1, 2)
    return [0, 10, 11, *placeholders, *range(20, 20 + images)], squares, grids


def answers_to(built: BuiltModel, *prompts: tuple[list[int], Tensor, Tensor]) -> list[list[int]]:
    return generate(
        built.module,
        frozen=built.frozen,
        prompts=[ids for ids, _, _ in prompts],
        images=torch.cat([squares for _, squares, _ in prompts]),
        grids=torch.cat([grids for _, _, grids in prompts]),
        image_token_id=3,
        end_id=-1,
        max_new_tokens=5,
    )


def without_cache(built: BuiltModel, prompt: tuple[list[int], Tensor, Tensor]) -> list[int]:
    """The whole sequence again for every token."""
    ids, squares, grids = list(prompt[0]), *prompt[1:]
    for _ in range(5):
        row = torch.tensor([ids])
        with torch.no_grad():
            features = {**built.frozen.encode(squares), "grids": grids}
            places = (row == 3).flatten().nonzero().squeeze(1)
            hidden = built.module.language(
                built.module.embed(row, places, features),
                torch.arange(len(ids))[None],
                segment_mask(torch.ones_like(row)),
            )
            ids.append(int(built.module.language.lm_head(hidden[:, -1]).argmax()))
    return ids[len(prompt[0]) :]


def test_a_batch_of_answers_equals_each_alone_without_cache(tiled: BuiltModel):
    prompts = [prompt_of(tiled, images=images) for images in (2, 0, 1)]
    expected = [without_cache(tiled, prompt) for prompt in prompts]
    assert answers_to(tiled, *prompts) == expected
    assert len({tuple(answer) for answer in expected}) > 1


def test_tokens_that_do_not_fit_the_grids(tiled: BuiltModel):
    batch = inputs(tiled, images=2)
    batch["image_positions"] = batch["image_positions"][:-1]  # type: ignore[index]
    with pytest.raises(DataError, match="give 98 features but it has 97 placeholders"):
        tiled.module(**batch)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"tiling": None}, "tiling is not set and model.adaptor.kind is 'tiles'"),
        ({"adaptor": {"kind": "mlp"}}, "tiling is set and model.adaptor.kind is 'mlp'"),
        ({"tiling": {"max_tiles": 0}}, "max_tiles is 0: expected at least 1"),
    ],
)
def test_adaptor_and_tiling_need_each_other(config_of, overrides, message):
    with pytest.raises(ConfigError, match=message):
        build_model(
            config_of("tiny_vl2", overrides),
            trainable=["adaptor"],
            freeze=[],
            dtype=torch.float32,
            frozen_dtype=torch.float32,
            device="meta",
            seed=0,
        )
