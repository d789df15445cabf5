"""The encoder under DeepSeek-VL2's geometry, small: 2 x 2 tokens a square."""

from __future__ import annotations

import pytest

from vltrain.batch import Learn, Origin, RecordKind, Role, Sample, StoredImage, Turn
from vltrain.errors import RecordFault
from vltrain.processing.encode import Encoder, EncodeRules
from vltrain.processing.geometry import TiledGeometry
from vltrain.processing.tiling import TilingRule

ORIGIN = Origin(source="s", shard="0.tar", key="k")
GEOMETRY = TiledGeometry(
    tile_side=16, tokens_per_side=2, max_tiles=9, max_tiled_images=2, rule=TilingRule.effective
)
ONE_TILE = 2 * 3 + 1 + 2 * 3
TWO_TILES = 2 * 3 + 1 + 2 * 5  # side by side


@pytest.fixture(scope="module")
def encoder(tokenizer) -> Encoder:
    rules = EncodeRules(learn=Learn.answers, sequence_length=128, max_images=32)
    return Encoder(tokenizer, GEOMETRY, rules)


def sample_of(kind: RecordKind, *, sizes: list[tuple[int, int]]) -> Sample:
    """Each image followed by a letter."""
    images = tuple(
        StoredImage(member=f"{n}.png", data=b"", width=width, height=height)
        for n, (width, height) in enumerate(sizes)
    )
    content = tuple(part for n in range(len(images)) for part in (n, "a"))
    if kind is RecordKind.conversation:
        turns = (
            Turn(role=Role.user, content=content),
            Turn(role=Role.assistant, content=("b",)),
        )
    else:
        turns = (Turn(role=Role.document, content=content),)
    return Sample(origin=ORIGIN, kind=kind, turns=turns, images=images)


def test_up_to_two_images_are_tiled_by_their_own_size(encoder):
    example = encoder.encode(sample_of(RecordKind.interleaved, sizes=[(32, 16), (16, 16)]))
    assert example.image_tokens.tolist() == [TWO_TILES, ONE_TILE]
    assert (example.ids == encoder.tokenizer.image_id).sum() == TWO_TILES + ONE_TILE


def test_three_images_have_one_tile_each(encoder):
    example = encoder.encode(sample_of(RecordKind.interleaved, sizes=[(32, 16)] * 3))
    assert example.image_tokens.tolist() == [ONE_TILE] * 3


def test_thirty_images_of_a_document_are_cut_between_them(encoder):
    """However few of them a piece holds, they stay untiled: the document has thirty."""
    sample = sample_of(RecordKind.interleaved, sizes=[(32, 16)] * 30)
    sizes = encoder.measure(sample)
    assert all(size.tokens <= 128 for size in sizes)
    assert all(size.image_tokens == ONE_TILE * size.images for size in sizes)
    assert sum(size.images for size in sizes) == 30


def test_thirty_images_of_a_conversation_are_too_long(encoder):
    sample = sample_of(RecordKind.conversation, sizes=[(32, 16)] * 30)
    with pytest.raises(RecordFault, match=r"\d+ tokens; the limit is 128"):
        encoder.measure(sample)


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1)])
def test_a_line_of_pixels_is_one_tile(encoder, size):
    example = encoder.encode(sample_of(RecordKind.interleaved, sizes=[size]))
    assert example.image_tokens.tolist() == [ONE_TILE]
