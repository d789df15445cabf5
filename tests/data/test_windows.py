"""Windows: weights held by what was given, packs full and within budget, what is refused."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from plan_fakes import (
    LANGUAGE_ONLY,
    SMALL,
    UNPACKED,
    ListedTable,
    constant_sizes,
    drawn,
    fill,
    make_plan,
    picture_table,
    take,
    text_sizes,
    text_table,
)

from vltrain.batch import Modality
from vltrain.data.config import (
    MixtureConfig,
    OrderConfig,
    PackingConfig,
    RatioUnit,
)
from vltrain.errors import DataError


def test_a_unit_that_a_source_has_none_of_does_not_hang():
    def nothing_learned(samples):
        tokens, _, images = text_sizes()(samples)
        return tokens, tokens * 0, images

    plan = make_plan(
        [text_table(sizes=nothing_learned), text_table("other")],
        mixture=MixtureConfig(language_share=1.0, unit=RatioUnit.supervised_tokens),
        packing=SMALL,
    )
    assert len(take(plan, 20)) == 20


def test_nested_weights_hold_in_tokens():
    tables = [
        text_table("long", sizes=constant_sizes(1000)),
        text_table("short", sizes=constant_sizes(10)),
        text_table("chat", sizes=constant_sizes(300)),
    ]
    mixture = MixtureConfig(language_share=1.0, category_weights={"web": 3, "sft": 1})
    plan = make_plan(
        tables,
        mixture=mixture,
        categories={"long": "web", "short": "web", "chat": "sft"},
        weights={"long": 2, "short": 1},
        order=OrderConfig(lanes=2),
    )
    tokens = Counter()
    for step in take(plan, 300):
        for pack in step.packs:
            for ref in pack.pieces:
                tokens[ref.source] += ref.tokens
    total = sum(tokens.values())
    shares = [tokens[source] / total for source in range(3)]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.005)


def test_one_tiny_source_beside_one_of_ten_million_samples():
    tables = [text_table("tiny", samples=3), text_table("huge", samples=10_000_000)]
    plan = make_plan(tables, mixture=LANGUAGE_ONLY, weights={"tiny": 1, "huge": 999}, sequences=256)
    begin = time.process_time()
    steps = take(plan, 20)
    assert time.process_time() - begin < 20
    tiny = Counter(drawn(steps, source=0))
    tokens = sum(r.tokens for s in steps for p in s.packs for r in p.pieces if r.source == 0)
    assert set(tiny) == {0, 1, 2}
    assert tokens / sum(s.tokens["language"] for s in steps) == pytest.approx(0.001, abs=0.0005)


def test_fill_of_the_published_mix_and_of_pictures_alone():
    tables = [text_table(samples=1_000_000), picture_table(samples=1_000_000)]
    order = OrderConfig(lanes=8)
    mixed = make_plan(tables, sequences=256, order=order)
    assert fill(take(mixed, 40)) >= 0.997
    pictures = make_plan(
        [picture_table(samples=1_000_000)],
        sequences=256,
        mixture=MixtureConfig(language_share=0.0),
        order=order,
    )
    assert fill(take(pictures, 40)) >= 0.94


def test_packs_hold_no_more_than_their_budgets():
    packing = PackingConfig(enabled=True, sequence_length=4096, max_images=4, window_samples=256)
    for step in take(make_plan([text_table(), picture_table()], packing=packing), 40):
        assert max(p.tokens for p in step.packs) <= 4096
        assert max(p.images for p in step.packs) <= 4


def test_without_packing_a_pack_is_one_piece():
    steps = take(make_plan([text_table(), picture_table()], packing=UNPACKED), 10)
    assert all(len(p.pieces) == 1 for s in steps for p in s.packs)


@pytest.mark.parametrize(
    ("table", "packing", "words"),
    [
        (
            text_table("web", sizes=constant_sizes(5000)),
            SMALL,
            ["source 'web', piece", "5000 tokens", "holds 4096 tokens", "launch/prepare.py"],
        ),
        (
            text_table("web", sizes=constant_sizes(600, images=9)),
            SMALL,
            ["9 images", "8 images", "data.packing.max_images"],
        ),
        (
            text_table("web", sizes=constant_sizes(577, images=1)),
            PackingConfig(enabled=False, sequence_length=1),
            ["577 tokens", "holds 1 tokens"],
        ),
    ],
)
def test_a_piece_that_fits_no_sequence_is_refused(table, packing, words):
    with pytest.raises(DataError) as refused:
        take(make_plan([table], mixture=LANGUAGE_ONLY, packing=packing), 1)
    for word in words:
        assert word in str(refused.value)


def test_image_tokens_on_top_bound_the_text_alone():
    packing = PackingConfig(enabled=False, sequence_length=512, image_tokens_on_top=True)
    table = picture_table(samples=2000, sizes=constant_sizes(576 + 512, images=1))
    mixture = MixtureConfig(language_share=0.0)
    assert len(take(make_plan([table], mixture=mixture, packing=packing), 2)) == 2
    table.sizes = constant_sizes(576 + 513, images=1)
    with pytest.raises(DataError, match="513 text tokens"):
        take(make_plan([table], mixture=mixture, packing=packing), 1)


def test_a_table_that_counts_pieces_it_does_not_have_is_refused():
    class Lying(ListedTable):
        num_pieces = 7  # type: ignore[assignment]

    table = Lying(name="web", modality=Modality.language, shard_samples=[3], lengths=[[], [], []])
    with pytest.raises(DataError, match=r"'web' counts 7 pieces but none was found.*Prepare it"):
        take(make_plan([table], mixture=LANGUAGE_ONLY, packing=SMALL), 1)
