from __future__ import annotations

import pytest
import torch

from vltrain.errors import DataError
from vltrain.models.generate import generate
from vltrain.models.language import segment_mask

IMAGE_ID, END_ID = 3, 1


def _generate(built, prompts, images, *, end_id=END_ID, max_new_tokens=8):
    return generate(
        built.module,
        frozen=built.frozen,
        prompts=prompts,
        images=images,
        grids=torch.zeros((len(images), 2), dtype=torch.int64),
        image_token_id=IMAGE_ID,
        end_id=end_id,
        max_new_tokens=max_new_tokens,
    )


def _without_cache(built, prompt, images, *, max_new_tokens):
    """The whole sequence again for every token."""
    ids = list(prompt)
    for _ in range(max_new_tokens):
        row = torch.tensor([ids])
        with torch.no_grad():
            positions = (row == IMAGE_ID).flatten().nonzero().squeeze(1)
            embeds = built.module.embed(row, positions, built.frozen.encode(images))
            hidden = built.module.language(
                embeds, torch.arange(len(ids))[None], segment_mask(torch.ones_like(row))
            )
            ids.append(int(built.module.language.lm_head(hidden[:, -1]).argmax()))
    return ids[len(prompt) :]


@pytest.fixture
def prompts():
    return [[0, 10, 11, 12], [0, *[IMAGE_ID] * 16, 20, 21], [0, *[IMAGE_ID] * 16, 30, 31, 32, 33]]


def test_a_batch_with_cache_equals_each_prompt_alone_without(tiny, build, prompts):
    built = build(tiny)
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    answers = _generate(built, prompts, images, end_id=-1)
    assert answers[0] == _without_cache(built, prompts[0], images[:0], max_new_tokens=8)
    assert answers[1] == _without_cache(built, prompts[1], images[:1], max_new_tokens=8)
    assert answers[2] == _without_cache(built, prompts[2], images[1:], max_new_tokens=8)


def test_an_answer_ends_at_the_end_token(tiny, build, prompts):
    built = build(tiny)
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    free = _generate(built, prompts, images, end_id=-1)
    end_id = free[0][3]
    ended = _generate(built, prompts, images, end_id=end_id)
    for answer, whole in zip(ended, free, strict=True):
        expected = whole[: whole.index(end_id)] if end_id in whole else whole
        assert answer == expected


def test_text_alone_and_no_new_token(tiny, build):
    built = build(tiny)
    none = torch.zeros((0, 64, 64, 3), dtype=torch.uint8)
    assert len(_generate(built, [[0, 5], [0, 6, 7]], none, end_id=-1, max_new_tokens=1)[0]) == 1
    assert _generate(built, [[0, 5], [0, 6, 7]], none, max_new_tokens=0) == [[], []]


def test_a_missing_image_is_named(tiny, build, prompts):
    images = torch.zeros((1, 64, 64, 3), dtype=torch.uint8)
    with pytest.raises(DataError, match="give 16 features but it has 32"):
        _generate(build(tiny), prompts, images)
