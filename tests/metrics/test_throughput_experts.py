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


def test_attention_by_its_own_widths() -> None:
    assert TINY.attention_width == 2 * 1280
    assert BASE.attention_width == 32 * (192 + 128)


def test_a_square_through_the_shuffling_adaptor() -> None:
    """14 x 14 tokens of 4 x 1152 channels, forward alone."""
    siglip = SiglipShape(image_size=384, patch_size=14, width=1152, layers=27, ffn=4304)
    shape = ModelShape(sam=None, siglip=siglip, language=TINY, shuffles=True)
    work = Work(squares=7, tokens=0, targets=0, sum_squared_document_tokens=0)
    found = count_flops(shape, trained=[], work=work).adaptor
    assert found == 7 * 2 * 196 * (4608 * 1280 + 1280 * 1280)
