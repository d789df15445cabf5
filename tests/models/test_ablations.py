"""Every kind of tower and adaptor: token counts, gradients, packing, and the formulas by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_choices import CLIP, DINOV2, ENCODERS, TABLE, overrides, trained_tower
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model

from vltrain.batch import IGNORE
from vltrain.errors import ConfigError
from vltrain.models.aligner import build_aligner
from vltrain.models.config import AdaptorKind, VitConfig
from vltrain.models.pixels import pixel_view
from vltrain.models.vit import VitTower, probe
from vltrain.processing.geometry import FixedGeometry


@pytest.mark.parametrize(("encoder", "kind"), TABLE)
def test_an_image_costs_what_the_geometry_says(config_of, build, encoder, kind):
    config = config_of("tiny", overrides(encoder, kind))
    assert config.geometry == FixedGeometry(tokens_per_image=16)
    built = build(config, trainable=["adaptor"])
    squares = torch.randint(0, 256, (3, config.image_side, config.image_side, 3)).byte()
    features = built.frozen.encode(squares)
    assert not any(feature.requires_grad for feature in features.values())
    tokens = built.module.adaptor(features)
    cost = config.geometry.layout(640, 480, images_in_sample=3).tokens
    assert tokens.shape == (3, cost, 64)
    none = built.frozen.encode(squares[:0])
    assert {n: f.shape[1:] for n, f in none.items()} == {
        n: f.shape[1:] for n, f in features.items()
    }


@pytest.mark.parametrize(("encoder", "kind"), TABLE)
def test_gradients_reach_what_trains_and_nothing_else(config_of, build, pack, encoder, kind):
    config = config_of("tiny", overrides(encoder, kind))
    trainable = [*trained_tower(encoder), "adaptor", "language"]
    built = build(config, trainable=trainable)
    parameters = dict(built.module.named_parameters())
    for images, labels in ((2, True), (0, True), (1, False), (0, False)):
        built.module.zero_grad(set_to_none=True)
        batch = pack(config, [[(9, images), (5, 0)]])
        if not labels:
            batch.targets.fill_(IGNORE)
        batch.run(built).backward()
        assert [n for n in built.trainable if parameters[n].grad is None] == []
        frozen = set(parameters) - set(built.trainable)
        assert [n for n in frozen if parameters[n].grad is not None] == []
        moved = {n for n in built.trainable if parameters[n].grad.abs().sum() > 0}  # type: ignore[union-attr]
        vision = {n for n in built.trainable if not n.startswith("language.")}
        assert moved & vision == (vision if images and labels else set())


@pytest.mark.parametrize("encoder", ENCODERS)
def test_packed_logits_equal_unpacked_ones_with_every_encoder(config_of, build, pack, encoder):
    config = config_of("tiny", overrides(encoder, dict(TABLE)[encoder]))
    built = build(config, trainable=[*trained_tower(encoder), "adaptor"])
    packed = pack(config, [[(10, 1), (7, 0), (12, 1)]])
    together = packed.logits(built)[0]
    starts = [0, 26, 33, 61]
    for number, (text, images) in enumerate([(10, 1), (7, 0), (12, 1)]):
        start, end = starts[number], starts[number + 1]
        alone = pack(config, [[(text, images)]])
        alone.ids[0, : end - start] = packed.ids[0, start:end]
        if images:
            alone.images[0] = packed.images[0 if number == 0 else 1]
        torch.testing.assert_close(
            together[start:end], alone.logits(built)[0, : end - start], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("encoder", ENCODERS)
def test_another_documents_words_and_picture_change_no_bit(config_of, build, pack, encoder):
    config = config_of("tiny", overrides(encoder, dict(TABLE)[encoder]))
    built = build(config, trainable=[*trained_tower(encoder), "adaptor"])
    packed = pack(config, [[(10, 1), (9, 1), (8, 0)]])
    before = packed.logits(built)[0]
    packed.ids[0, 26:28] = 5  # the second document's first words
    packed.images[1] = 255 - packed.images[1]  # and its picture
    after = packed.logits(built)[0]
    torch.testing.assert_close(after[:26], before[:26], rtol=0, atol=0)
    torch.testing.assert_close(after[51:59], before[51:59], rtol=0, atol=0)
    assert (after[28:51] - before[28:51]).abs().max() > 1e-3


def _drawn(kind: AdaptorKind) -> tuple[torch.nn.Module, list[Tensor]]:
    """An aligner of two towers (6 and 4 channels) on a 2 x 2 grid, and tokens of one picture."""
    torch.manual_seed(0)
    aligner = build_aligner(kind, widths=[6, 4], out=8, grid=2).double()
    return aligner, [torch.randn(1, 4, 6).double(), torch.randn(1, 4, 4).double()]


def _linear(layer: torch.nn.Linear, x: np.ndarray) -> np.ndarray:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def _gelu(x: np.ndarray) -> np.ndarray:
    return F.gelu(torch.from_numpy(x)).numpy()


def test_hybrid_split_by_hand():
    aligner, (high, low) = _drawn(AdaptorKind.hybrid_split)
    for place in range(4):
        joined = np.concatenate(
            (
                _linear(aligner.high_res_vision_proj, high[0, place].numpy()),
                _linear(aligner.vision_proj, low[0, place].numpy()),
            )
        )
        expected = _linear(aligner.proj, _gelu(joined))
        np.testing.assert_allclose(aligner([high, low])[0, place].detach(), expected)


def test_shared_by_hand():
    aligner, (high, low) = _drawn(AdaptorKind.shared)
    for place in range(4):
        joined = np.concatenate((high[0, place].numpy(), low[0, place].numpy()))
        expected = _linear(aligner.linear2, _gelu(_linear(aligner.linear1, joined)))
        np.testing.assert_allclose(aligner([high, low])[0, place].detach(), expected)


def test_separate_by_hand():
    aligner, (high, low) = _drawn(AdaptorKind.separate)
    found = aligner([high, low])[0].detach().numpy()
    for mlp, tower, half in (
        (aligner.high_res_vision, high, slice(0, 4)),
        (aligner.vision, low, slice(4, 8)),
    ):
        own = _linear(mlp.linear2, _gelu(_linear(mlp.linear1, tower[0].numpy())))
        np.testing.assert_allclose(found[:, half], own)


@pytest.mark.parametrize(
    ("kind", "pairs"),
    # places of the grid: 0 1 / 2 3
    [(AdaptorKind.pool_width, [(0, 1), (2, 3)]), (AdaptorKind.pool_height, [(0, 2), (1, 3)])],
)
def test_token_pooling_by_hand(kind, pairs):
    aligner, (high, low) = _drawn(kind)
    found = aligner([high, low])[0].detach().numpy()
    assert found.shape == (4, 8)
    rows = [
        _linear(layer, np.concatenate((tower[0, a].numpy(), tower[0, b].numpy())))
        for layer, tower in ((aligner.high_res_vision_proj, high), (aligner.vision_proj, low))
        for a, b in pairs
    ]
    np.testing.assert_allclose(found, _linear(aligner.proj, _gelu(np.stack(rows))))


def test_clip_gives_the_state_before_its_last_layer_without_the_class_token(config_of, build):
    built = build(config_of("tiny", overrides("clip", "mlp")), trainable=["adaptor"])
    stock = CLIPVisionModel(CLIPVisionConfig(**CLIP["settings"])).eval()
    stock.load_state_dict(built.tower("vit").model.state_dict())
    squares = torch.randint(0, 256, (2, 32, 32, 3)).byte()
    pixels = (squares.float() / 255 - torch.tensor(CLIP["mean"])) / torch.tensor(CLIP["std"])
    with torch.no_grad():
        states = stock(pixels.permute(0, 3, 1, 2), output_hidden_states=True).hidden_states
    found = built.frozen.encode(squares)["vit"]
    torch.testing.assert_close(found, states[2][:, 1:])  # three layers: 2 is before the last


def test_dinov2_reads_a_view_of_another_size_than_its_table(config_of, build):
    config = config_of("tiny", overrides("siglip_dinov2", "shared"))
    built = build(config, trainable=["adaptor"])
    stock = Dinov2Model(Dinov2Config(**DINOV2["settings"])).eval()
    stock.load_state_dict(built.tower("vit").model.state_dict())
    squares = torch.randint(0, 256, (2, 32, 32, 3)).byte()
    pixels = pixel_view(config, part="vit", images=squares, dtype=torch.float32)
    with torch.no_grad():
        states = stock(pixels).last_hidden_state
    torch.testing.assert_close(built.frozen.encode(squares)["vit"], states[:, 1:])


def test_each_tower_has_its_own_normalisation(config_of):
    config = config_of("tiny", overrides("siglip_dinov2", "shared"))
    square = torch.full((1, 32, 32, 3), 51, dtype=torch.uint8)  # 0.2
    siglip = pixel_view(config, part="siglip", images=square, dtype=torch.float64)
    assert siglip[0, :, 0, 0].tolist() == pytest.approx([-0.6] * 3)
    vit = pixel_view(config, part="vit", images=square, dtype=torch.float64)
    expected = [(0.2 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    assert vit[0, :, 0, 0].tolist() == pytest.approx(expected)


def test_the_square_is_as_large_as_the_largest_view(config_of):
    assert config_of("tiny", overrides("siglip_sam", "shared")).image_side == 64
    assert config_of("tiny", overrides("siglip_dinov2", "shared")).image_side == 32


def test_a_tower_that_trains_leaves_out_what_no_gradient_reaches(config_of, build):
    built = build(config_of("tiny", overrides("clip", "mlp")), trainable=["vit", "adaptor"])
    frozen = {n for n, p in built.module.named_parameters() if not p.requires_grad}
    unused = {n for n in frozen if n.startswith("vit.")}
    assert "vit.model.post_layernorm.weight" in unused
    assert {n.split(".")[4] for n in unused if ".layers." in n} == {"2"}  # the layer after it
    assert "vit.model.encoder.layers.1.mlp.fc1.weight" in built.trainable


def test_counted_operations_of_a_tower_by_hand():
    vit = VitConfig(**DINOV2)
    tokens, width = 17, 24  # 4 x 4 patches and the class token
    layer = 2 * tokens * (4 * width * width + 2 * width * 48) + 4 * tokens * tokens * width
    assert probe(vit).flops == 2 * layer + 2 * 16 * 3 * 64 * width


@pytest.mark.parametrize(
    ("encoder", "parameters"),
    # CLIP ViT-L/14-336 and DINOv2-L/14 as published, counted by hand from their sizes
    [("clip", 303_507_456), ("siglip_dinov2", 304_368_640)],
)
def test_published_encoders_have_their_number_of_parameters(compose, encoder, parameters):
    words = ("data.sources.sharegpt4v_captions.path=x", "data.sources.document_ocr.path=x")
    config = compose("stage=1", f"model/encoder={encoder}", *words).model
    with torch.device("meta"):
        tower = VitTower(config.vit, width=1024)
    assert sum(p.numel() for p in tower.parameters()) == parameters
    assert config.tokens_per_image == 576


MLP = {"kind": "mlp"}
HIERARCHICAL = {  # 8 x 8 patches, merged to 4 x 4 on the way
    "model_type": "swin",
    "settings": {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 1],
        "window_size": 2,
    },
    "image_size": 32,
    "patch_size": 4,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sam": None, "siglip": None}, r"towers \(none\): an adaptor reads one or two"),
        ({"vit": CLIP}, "sam, vit, siglip: an adaptor reads one or two"),
        ({"sam": None, "adaptor": {"kind": "shared"}}, "'shared', which joins two"),
        ({"siglip": None, "adaptor": {"kind": "mlp"}}, "set model.adaptor.grid"),
        ({"adaptor": {"grid": 4}}, "grid is 4, but siglip already says it"),
        (
            {"siglip": {"image_size": 24}, "adaptor": {"kind": "pool_width"}},
            "'pool_width'.* visual grid has 3 places a side: expected an even number",
        ),
        (
            {"sam": None, "vit": {**DINOV2, "image_size": 48}},
            "siglip has a grid of 4 and vit one of 6",
        ),
        ({"sam": None, "vit": {**DINOV2, "mean": []}}, "model.vit.mean is not set"),
        ({"sam": None, "vit": {**DINOV2, "std": [1.0]}}, r"model.vit.std is \[1.0\]: expected thr"),
        (
            {"sam": None, "vit": {**DINOV2, "model_type": "siglip_vision_model"}},
            "that tower has a part of its own, model.siglip",
        ),
        (
            {"sam": None, "vit": {**DINOV2, "model_type": "dinov9"}},
            "'dinov9' .*is nothing that transformers knows",
        ),
        (
            {"sam": None, "vit": {**DINOV2, "model_type": "llama"}},
            "is no vision tower of transformers'|cannot be run",
        ),
        (
            {"sam": None, "siglip": None, "adaptor": MLP, "vit": {**DINOV2, **HIERARCHICAL}},
            r"shape \(16, 16\), expected 64 patches .*one state for every patch is needed",
        ),
    ],
)
def test_choices_that_make_no_sense_are_refused(config_of, build, changes, message):
    with pytest.raises(ConfigError, match=message):
        build(config_of("tiny", changes), trainable=["adaptor"])
