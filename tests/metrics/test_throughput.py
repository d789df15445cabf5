"""FLOPs against published constants: FlopCounterMode on the full-size encoders gave 972.08 (SAM-B
with its neck) and 381.41 GFLOP (SigLIP-L/16-384); the language numbers follow from the
formulas."""

from __future__ import annotations

import pytest

from vltrain.errors import ConfigError
from vltrain.metrics.throughput import (
    LanguageShape,
    ModelShape,
    SamShape,
    SiglipShape,
    VitShape,
    Work,
    count_flops,
    sam_forward,
    siglip_forward,
)

SAM = SamShape(
    image_size=1024,
    patch_size=16,
    width=768,
    layers=12,
    mlp_ratio=4.0,
    window=14,
    num_global_layers=4,
    out_channels=256,
)
SIGLIP = SiglipShape(image_size=384, patch_size=16, width=1024, layers=24, ffn=4096)
SMALL = LanguageShape(width=2048, layers=24, heads=16, kv_heads=16, ffn=5632, vocab_size=102400)
LARGE = LanguageShape(width=4096, layers=30, heads=32, kv_heads=32, ffn=11008, vocab_size=102400)
ONE_IMAGE = Work(squares=1, tokens=0, targets=0, sum_squared_document_tokens=0)


def hybrid(language: LanguageShape) -> ModelShape:
    return ModelShape(
        sam=SAM, siglip=SIGLIP, vit=None, grid=24, adaptor="hybrid_split", language=language
    )


def sam_path(language: LanguageShape) -> float:
    """What the adaptor does to SAM's states for one image: its forward without the MLP, which makes
    576 tokens of 1024 channels twice (high, low) into halves of the width, then mixes them."""
    adaptor = count_flops(hybrid(language), trained=[], work=ONE_IMAGE).adaptor
    width = language.width
    return adaptor - 2 * 576 * (2 * 1024 * (width // 2) + width * width)


def test_encoders_match_the_counted_constants():
    assert sam_forward(SAM) / 1e9 == pytest.approx(972.08, abs=0.01)
    assert siglip_forward(SIGLIP) / 1e9 == pytest.approx(381.41, abs=0.01)
    whole = sam_forward(SAM) + sam_path(SMALL)
    assert whole / 1e9 == pytest.approx(1000.3, abs=0.05)


def test_language_sizes():
    assert SMALL.block_parameters == pytest.approx(1.233e9, rel=1e-3)
    assert SMALL.head_parameters == 209_715_200
    assert LARGE.block_parameters == pytest.approx(6.071e9, rel=1e-3)
    assert LARGE.head_parameters == 419_430_400


@pytest.mark.parametrize(("language", "tera"), [(SMALL, 3.70), (LARGE, 17.6)])
def test_stage_1_trains_the_adaptor(language, tera):
    work = Work(squares=1, tokens=704, targets=100, sum_squared_document_tokens=704**2)
    flops = count_flops(hybrid(language), trained=["adaptor"], work=work)
    assert flops.language / 1e12 == pytest.approx(tera, rel=0.003)
    assert flops.sam / 1e9 == pytest.approx(972.08, abs=0.01)
    assert flops.siglip / 1e9 == pytest.approx(381.41, abs=0.01)
    # 4 B T + 6 h L sum(l^2) + 4 H T_lab, written out.
    h, layers = language.width, language.layers
    expected = (
        4 * language.block_parameters * 704
        + 6 * h * layers * 704**2
        + 4 * language.head_parameters * 100
    )
    assert flops.language == expected


@pytest.mark.parametrize(("language", "tera"), [(SMALL, 36.7), (LARGE, 163)])
def test_stage_2_text_pack(language, tera):
    work = Work(squares=0, tokens=4096, targets=4096, sum_squared_document_tokens=4 * 1024**2)
    flops = count_flops(hybrid(language), trained=["adaptor", "language"], work=work)
    assert flops.total / 1e12 == pytest.approx(tera, rel=0.003)
    assert flops.sam == flops.siglip == flops.adaptor == 0


@pytest.mark.parametrize(("language", "tera"), [(SMALL, 36.4), (LARGE, 162)])
def test_stage_2_pack_of_five_images_counts_the_encoders_once(language, tera):
    squares = 4 * 819**2 + 820**2  # five documents of 4,096 tokens together
    work = Work(squares=5, tokens=4096, targets=4096, sum_squared_document_tokens=squares)
    flops = count_flops(hybrid(language), trained=["adaptor", "language"], work=work)
    assert flops.language / 1e12 == pytest.approx(tera, rel=0.003)
    encoders = flops.sam + flops.siglip + 5 * sam_path(language)
    assert encoders / 1e12 == pytest.approx(6.91, abs=0.005)


def test_a_pack_costs_its_documents_squares_not_its_own():
    one = Work(squares=0, tokens=4096, targets=0, sum_squared_document_tokens=4096**2)
    four = Work(squares=0, tokens=4096, targets=0, sum_squared_document_tokens=4 * 1024**2)
    whole, parts = (count_flops(hybrid(SMALL), trained=["language"], work=w) for w in (one, four))
    # 3 x (2 h L) x half of neither: 2 h L is already the causal half of 4 h L.
    assert whole.language - parts.language == 3 * 2 * 2048 * 24 * (4096**2 - 4 * 1024**2)


@pytest.mark.parametrize(("language", "tera"), [(SMALL, 8.14), (LARGE, 38.6)])
def test_stage_3_trains_siglip_too(language, tera):
    work = Work(squares=1, tokens=1024, targets=200, sum_squared_document_tokens=1024**2)
    flops = count_flops(hybrid(language), trained=["adaptor", "language", "siglip"], work=work)
    assert flops.language / 1e12 == pytest.approx(tera, rel=0.003)
    assert flops.siglip / 1e9 == pytest.approx(1144, abs=0.5)
    # Encoders 2.14 TFLOP together, once the adaptor's share of SAM's path is counted with them.
    encoders = flops.sam + flops.siglip + sam_path(language)
    assert encoders / 1e12 == pytest.approx(2.14, abs=0.01)


def test_adaptor_of_siglip_alone_by_hand():
    small = ModelShape(
        sam=None,
        siglip=SiglipShape(image_size=32, patch_size=16, width=3, layers=1, ffn=4),
        vit=None,
        grid=2,
        adaptor="mlp",
        language=LanguageShape(width=5, layers=1, heads=1, kv_heads=1, ffn=7, vocab_size=11),
    )
    first, second = 2 * 4 * 3 * 5, 2 * 4 * 5 * 5  # 4 visual tokens: 3 -> 5 -> 5
    forward = count_flops(small, trained=[], work=ONE_IMAGE).adaptor
    assert forward == first + second
    trains = count_flops(small, trained=["adaptor"], work=ONE_IMAGE).adaptor
    assert trains == 2 * first + 3 * second
    everything = count_flops(small, trained=["adaptor", "siglip"], work=ONE_IMAGE).adaptor
    assert everything == 3 * first + 3 * second


@pytest.mark.parametrize(
    ("kind", "frozen", "trains"),
    [
        # 4 visual tokens of 3 (vit) and 5 (siglip) channels into 8: first layers and second ones.
        ("hybrid_split", 2 * 4 * (3 + 5) * 4 + 2 * 4 * 8 * 8, 2 * 256 + 3 * 512),
        ("shared", 2 * 4 * (3 + 5) * 8 + 2 * 4 * 8 * 8, 2 * 512 + 3 * 512),
        ("separate", 2 * 4 * (3 + 5) * 4 + 2 * (2 * 4 * 4 * 4), 2 * 256 + 3 * 256),
        # half as many tokens of twice the channels, into the whole width
        ("pool_width", 2 * 2 * (6 + 10) * 8 + 2 * 4 * 8 * 8, 2 * 512 + 3 * 512),
    ],
)
def test_kinds_of_adaptor_by_hand(kind, frozen, trains):
    shape = ModelShape(
        sam=None,
        siglip=SiglipShape(image_size=32, patch_size=16, width=5, layers=1, ffn=4),
        vit=VitShape(width=3, forward=1000.0),
        grid=2,
        adaptor=kind,
        language=LanguageShape(width=8, layers=1, heads=1, kv_heads=1, ffn=7, vocab_size=11),
    )
    assert count_flops(shape, trained=[], work=ONE_IMAGE).adaptor == frozen
    flops = count_flops(shape, trained=["adaptor"], work=ONE_IMAGE)
    assert (flops.adaptor, flops.vit) == (trains, 1000.0)
    assert count_flops(shape, trained=["adaptor", "vit"], work=ONE_IMAGE).vit == 3000.0


def test_grouped_queries_have_smaller_projections():
    shape = LanguageShape(width=8, layers=2, heads=4, kv_heads=1, ffn=16, vocab_size=10)
    assert shape.block_parameters == 2 * (2 * 64 + 2 * 8 * 2 + 3 * 8 * 16)


def test_nothing_trained_is_forward_only():
    work = Work(squares=0, tokens=10, targets=2, sum_squared_document_tokens=100)
    flops = count_flops(hybrid(SMALL), trained=[], work=work)
    expected = 2 * SMALL.block_parameters * 10 + 2 * SMALL.head_parameters * 2
    assert flops.language == expected + 2 * 2048 * 24 * 100


def test_an_unknown_part_lists_the_choices():
    with pytest.raises(ConfigError, match="cannot count part 'vision'; this model's parts are sam"):
        count_flops(hybrid(SMALL), trained=["vision"], work=ONE_IMAGE)
    alone = ModelShape(sam=None, siglip=SIGLIP, vit=None, grid=24, adaptor="mlp", language=SMALL)
    with pytest.raises(ConfigError, match="cannot count part 'sam'; this model's parts are siglip"):
        count_flops(alone, trained=["sam"], work=ONE_IMAGE)
