from __future__ import annotations

import pytest
import torch

from vltrain.models.language import rotary_embedding, segment_mask


def test_mask_by_hand():
    mask = segment_mask(torch.tensor([[1, 1, 2, 2, 0]]))
    assert mask.shape == (1, 1, 5, 5)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_logits_equal_unpacked_logits(config_of, build, pack, attention):
    config = config_of("tiny", {"attention": attention})
    built = build(config)
    packed = pack(config, [[(10, 1), (7, 0), (12, 1)], [(5, 0)]])
    together = packed.logits(built)[0]
    starts = [0, 26, 33, 61]
    for number, (text, images) in enumerate([(10, 1), (7, 0), (12, 1)]):
        start, end = starts[number], starts[number + 1]
        alone = pack(config, [[(text, images)]])
        length = end - start
        alone.ids[0, :length] = packed.ids[0, start:end]
        if images:
            alone.images[0] = packed.images[0 if number == 0 else 1]
        torch.testing.assert_close(
            together[start:end], alone.logits(built)[0, :length], rtol=1e-5, atol=1e-5
        )


def test_a_document_does_not_see_its_neighbours(tiny, build, pack):
    built = build(tiny)
    packed = pack(tiny, [[(10, 1), (9, 0), (8, 0)]])
    before = packed.logits(built)[0]
    packed.ids[0, 26:35] = 5  # the second document
    after = packed.logits(built)[0]
    torch.testing.assert_close(after[:26], before[:26], rtol=0, atol=0)
    torch.testing.assert_close(after[35:43], before[35:43], rtol=0, atol=0)
    assert (after[26:35] - before[26:35]).abs().max() > 0.1


def test_recomputed_layers_give_the_same_gradients(config_of, build, pack):
    gradients = []
    for recompute in (False, True):
        config = config_of("tiny", {"activation_checkpointing": recompute})
        built = build(config)
        pack(config, [[(10, 1), (7, 0)]]).run(built).backward()
        gradients.append({n: p.grad for n, p in built.module.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_cast_of_the_module_does_not_round_rotary_frequencies(tiny, build):
    language = build(tiny).module.language
    language.bfloat16()
    assert not list(language.buffers())
    cosines, sines = rotary_embedding(
        torch.tensor([[1000]]), dim=4, theta=10000.0, dtype=torch.float32
    )
    assert cosines.flatten().tolist() == pytest.approx(2 * [0.562379, -0.839072], abs=1e-5)
    assert sines.flatten().tolist() == pytest.approx(2 * [0.826880, -0.544021], abs=1e-5)
