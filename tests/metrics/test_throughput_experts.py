"""Operations of a mixture of experts, against the activated parameters that DeepSeek-VL2's Table 1
gives."""

from __future__ import annotations

import pytest

from vltrain.metrics.throughput import (
    ExpertsShape,
    LanguageShape,
    LatentShape,
    ModelShape,
    SiglipShape,
    Work,
    count_flops,
)

LATENT = LatentShape(kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128)


def experts(number: int, ffn: int) -> ExpertsShape:
    return ExpertsShape(experts=number, per_token=6, shared=2, ffn=ffn, dense_layers=1)


TINY = LanguageShape(
    width=1280,
    layers=12,
    heads=10,
    kv_heads=10,
    ffn=6848,
    vocab_size=129280,
    experts=experts(64, 896),
)
SMALL = LanguageShape(
    width=2048,
    layers=27,
    heads=16,
    kv_heads=16,
    ffn=10944,
    vocab_size=102400,
    latent=LATENT,
    experts=experts(64, 1408),
)
BASE = LanguageShape(
    width=2560,
    layers=30,
    heads=32,
    kv_heads=32,
    ffn=12288,
    vocab_size=129280,
    latent=LATENT,
    experts=experts(72, 1536),
)


@pytest.mark.parametrize(("shape", "billions"), [(TINY, 0.57), (SMALL, 2.4), (BASE, 4.1)])
def test_parameters_that_a_token_meets(shape: LanguageShape, billions: float) -> None:
    activated = (shape.block_parameters + shape.head_parameters) / 1e9
    assert activated == pytest.approx(billions, rel=0.03)


HAND = LanguageShape(
    width=10,
    layers=3,
    heads=2,
    kv_heads=2,
    ffn=20,
    vocab_size=11,
    latent=LatentShape(kv_rank=4, nope_dim=3, rope_dim=2, value_dim=5),
    experts=ExpertsShape(experts=8, per_token=2, shared=1, ffn=6, dense_layers=1),
)


def test_latent_attention_and_experts_by_hand() -> None:
    queries, down, up, out = 10 * 2 * (3 + 2), 10 * (4 + 2), 4 * 2 * (3 + 5), 2 * 5 * 10
    dense, expert, gate = 3 * 10 * 20, 3 * 10 * 6, 10 * 8
    attention = 3 * (queries + down + up + out)
    # of eight experts a token meets two, and the shared one
    assert HAND.block_parameters == attention + dense + 2 * (3 * expert + gate)
    # half the square of: queries by keys (3 + 2 each), weights by values (5 each), 2 heads
    assert HAND.attention_width == 2 * (3 + 2 + 5)


def test_a_frozen_language_model_needs_no_gradients_of_its_weights() -> None:
    """DeepSeek-VL2's first stage trains encoder and adaptor, the others everything."""
    siglip = SiglipShape(image_size=28, patch_size=14, width=6, layers=1, ffn=8)
    shape = ModelShape(sam=None, siglip=siglip, vit=None, grid=1, adaptor="tiles", language=HAND)
    work = Work(squares=1, tokens=100, targets=7, sum_squared_document_tokens=5000)
    linear = 2 * (HAND.block_parameters * 100 + 10 * 11 * 7)
    attention = 20 * 3 * 5000
    encoder = 4 * (2 * (4 * 36 + 2 * 6 * 8) + 4 * 4 * 6 + 2 * 3 * 14**2 * 6)
    aligner = 2 * (24 * 10 + 10 * 10)
    first = count_flops(shape, trained=["siglip", "adaptor"], work=work)
    assert first.language == 2 * linear + 3 * attention
    assert (first.siglip, first.adaptor) == (3 * encoder, 3 * aligner)
    last = count_flops(shape, trained=["siglip", "adaptor", "language"], work=work)
    assert last.language == 3 * linear + 3 * attention
    assert last.total == last.language + 3 * encoder + 3 * aligner


def test_attention_by_its_own_widths() -> None:
    assert TINY.attention_width == 2 * 1280
    assert BASE.attention_width == 32 * (192 + 128)


def test_a_square_through_the_shuffling_adaptor() -> None:
    """14 x 14 tokens of 4 x 1152 channels, forward alone."""
    siglip = SiglipShape(image_size=384, patch_size=14, width=1152, layers=27, ffn=4304)
    shape = ModelShape(sam=None, siglip=siglip, vit=None, grid=14, adaptor="tiles", language=TINY)
    work = Work(squares=7, tokens=0, targets=0, sum_squared_document_tokens=0)
    found = count_flops(shape, trained=[], work=work).adaptor
    assert found == 7 * 2 * 196 * (4608 * 1280 + 1280 * 1280)
