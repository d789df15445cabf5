from __future__ import annotations

import pytest
import torch

from vltrain.errors import ConfigError
from vltrain.models.adaptor import HybridAdaptor
from vltrain.models.build import build_model
from vltrain.models.trainable import describe


def _build(config, *, device="cpu", dtype=torch.float32, seed=0, trainable=("adaptor",)):
    return build_model(
        config,
        trainable=trainable,
        freeze=[],
        dtype=dtype,
        frozen_dtype=torch.bfloat16,
        device=device,
        seed=seed,
    )


@pytest.mark.parametrize(
    ("name", "total", "parts"),
    [
        # facts: sam 89,670,912; second neck, convs, alpha 6,685,697; siglip 303,688,704
        (
            "deepseek_vl_7b",
            7_331_390_721,
            {
                "sam": 89_670_912,
                "siglip": 303_688_704,
                "adaptor": 787_456 + 5_898_240 + 1 + 20_979_712,
                "language": 6_490_935_296 + 419_430_400,
            },
        ),
        (
            "deepseek_vl_1.3b",
            1_962_640_384,
            {
                "siglip": 303_688_704,
                "adaptor": 6_295_552,
                "language": 1_442_940_928 + 209_715_200,
            },
        ),
        ("deepseek_vl_1.3b_hybrid", 2_058_996_993, None),
        # facts: projector and the two learned vectors at width 1280, 2048 and 2560
        *(
            (
                f"deepseek_vl2_{size}",
                412_987_248 + 4608 * width + width * width + 4 * width + language,
                {
                    "siglip": 412_987_248,
                    "adaptor": 4608 * width + width * width + 4 * width,
                    "language": language,
                },
            )
            for size, width, language in (
                ("tiny", 1280, 2_934_734_080),
                ("small", 2048, 15_706_484_224),
                ("base", 2560, 27_033_546_240),
            )
        ),
    ],
)
def test_full_sizes_have_the_published_number_of_parameters(config_of, name, total, parts):
    built = _build(config_of(name), device="meta", dtype=torch.bfloat16)
    counts = {count.part: count.parameters for count in describe([built.module, built.frozen])}
    assert sum(counts.values()) == total
    assert parts is None or counts == parts
    assert all(p.is_meta for _, p in built.named_parameters())


def test_full_size_geometry(config_of):
    config = config_of("deepseek_vl_7b")
    assert (config.image_side, config.tokens_per_image) == (1024, 576)
    config = config_of("deepseek_vl_1.3b")
    assert (config.image_side, config.tokens_per_image) == (384, 576)


def test_a_seed_gives_the_same_numbers_and_leaves_the_random_state_alone(tiny):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = _build(tiny), _build(tiny, trainable=("siglip", "language"))
    assert torch.equal(torch.get_rng_state(), before)
    second_parameters = dict(second.named_parameters())
    for name, parameter in first.named_parameters():
        torch.testing.assert_close(
            parameter.float(), second_parameters[name].float(), rtol=0.01, atol=0.01, msg=name
        )
    other = dict(_build(tiny, seed=1).named_parameters())
    name = "language.model.embed_tokens.weight"
    assert not torch.equal(other[name], dict(first.named_parameters())[name])


def test_parts_have_their_types_and_homes(tiny):
    built = _build(tiny, trainable=("siglip", "adaptor"))
    assert {p.dtype for p in built.module.parameters()} == {torch.float32}
    assert {p.dtype for p in built.frozen.parameters()} == {torch.bfloat16}
    assert {n.split(".")[0] for n, _ in built.module.named_parameters()} == {
        "siglip",
        "adaptor",
        "language",
    }
    assert {n.split(".")[0] for n, _ in built.frozen.named_parameters()} == {"sam"}
    assert torch.get_default_dtype() == torch.float32


def test_a_fresh_sam_is_not_numerically_zero(tiny):
    weight = dict(_build(tiny).named_parameters())["sam.layers.0.mlp.lin1.weight"]
    assert weight.float().std().item() == pytest.approx(0.02, rel=0.2)


def test_the_second_neck_starts_as_sams_own(tiny):
    built = _build(tiny)
    sam, adaptor = built.tower("sam"), built.module.adaptor
    assert isinstance(adaptor, HybridAdaptor)
    for name, parameter in adaptor.neck.named_parameters():
        torch.testing.assert_close(parameter, sam.get_parameter(f"neck.{name}").float())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sam": None}, "has no SAM tower but model.adaptor.kind is 'hybrid_split'"),
        ({"adaptor": {"kind": "mlp"}}, "has a SAM tower but model.adaptor.kind is 'mlp'"),
        ({"image_token_id": 512}, "image_token_id is 512 but model.language.vocab_size is 512"),
        ({"language": {"heads": 5}}, "language.width is 64 and model.language.heads is 5"),
        ({"sam": {"heads": 3}}, "sam.width is 32 and model.sam.heads is 3"),
        ({"sam": {"global_layers": [2]}}, r"global_layers is \[2\]"),
        ({"sam": {"global_layers": []}}, r"global_layers is \[\]"),
        (
            {"sam": None, "adaptor": {"kind": "mlp", "train_sam_neck": True}},
            "train_sam_neck needs a SAM tower",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(config_of, overrides, message):
    with pytest.raises(ConfigError, match=message):
        _build(config_of("tiny", overrides))
