"""Streams of single sources: every sample once per epoch, readable anywhere, local, shuffled."""

from __future__ import annotations

import numpy as np
import pytest
from plan_fakes import ListedTable, text_table

from vltrain.batch import Modality
from vltrain.data.config import RatioUnit
from vltrain.data.order import SourceStream, block_size, random_order
from vltrain.errors import DataError


def stream_of(table, *, seed: int = 0, block_samples: int = 16, lanes: int = 4) -> SourceStream:
    return SourceStream(
        table, seed=seed, block_samples=block_samples, lanes=lanes, unit=RatioUnit.tokens
    )


def pieces(stream: SourceStream, position: int, count: int) -> list[int]:
    return [p for block, rows in stream.read(position, count) for p in block.piece[rows].tolist()]


def test_random_order_is_fixed_for_all_time_and_all_machines():
    # Raw Philox output keyed by xxh3-128: a change here changes every run's data.
    assert random_order(8, 0, "text", "blocks", 0).tolist() == [1, 3, 2, 0, 4, 5, 7, 6]
    assert random_order(8, 0, "text", "blocks", 1).tolist() != [1, 3, 2, 0, 4, 5, 7, 6]
    assert sorted(random_order(1000, "x").tolist()) == list(range(1000))


def test_words_of_a_key_do_not_run_together():
    assert random_order(64, "a", "bc").tolist() != random_order(64, "ab", "c").tolist()


@pytest.mark.parametrize("samples", [1, 3, 100, 10_007])
def test_every_sample_comes_once_in_every_epoch(samples):
    stream = stream_of(text_table(samples=samples))
    for epoch in range(3):
        assert sorted(pieces(stream, epoch * samples, samples)) == list(range(samples))


def test_epochs_and_seeds_have_orders_of_their_own():
    table = text_table(samples=500)
    first, second = pieces(stream_of(table), 0, 500), pieces(stream_of(table), 500, 500)
    assert first != second
    assert first != pieces(stream_of(table, seed=1), 0, 500)


def test_reading_in_parts_and_anywhere_equals_reading_through():
    table = text_table(samples=333)
    whole = pieces(stream_of(table), 0, 1000)
    parts = stream_of(table)
    assert [p for i in range(0, 1000, 7) for p in pieces(parts, i, min(7, 1000 - i))] == whole
    assert pieces(stream_of(table), 612, 5) == whole[612:617]


def test_blocks_are_neighbours_of_one_shard():
    stream = stream_of(text_table(samples=1000), block_samples=50, lanes=1)
    run = pieces(stream, 0, 1000)
    for first in range(0, 1000, 50):
        block = run[first : first + 50]
        assert max(block) - min(block) == 49
        assert block != sorted(block)
    firsts = [min(run[first : first + 50]) for first in range(0, 1000, 50)]
    assert firsts != sorted(firsts)


def test_pieces_of_a_split_text_stay_together_and_in_order():
    table = ListedTable(
        name="long", modality=Modality.language, shard_samples=[2, 1], lengths=[[5, 6], [], [7]]
    )
    got = pieces(stream_of(table), 0, 3)
    assert sorted(got) == [0, 1, 2]
    assert got.index(1) == got.index(0) + 1
    block, _ = stream_of(table).at(0)
    assert block.sample_tokens.sum() == 18


def test_units_are_what_the_mixture_counts():
    table = ListedTable(name="t", modality=Modality.language, shard_samples=[1], lengths=[[5, 6]])
    got = {}
    for unit in RatioUnit:
        stream = SourceStream(table, seed=0, block_samples=16, lanes=1, unit=unit)
        got[unit.value] = stream.at(0)[0].sample_units.tolist()
    assert got == {"tokens": [11], "supervised_tokens": [9], "samples": [2]}


def test_block_size_gives_small_sources_several_blocks_per_lane():
    assert block_size(10_000_000, largest=256, lanes=64) == 256
    assert block_size(12_800, largest=256, lanes=64) == 50
    assert block_size(3, largest=256, lanes=64) == 16


def test_state_is_bytes_per_block_not_per_sample():
    stream = stream_of(text_table(samples=10_000_000), block_samples=256)
    stream.at(5_000_000)
    held = sum(a.nbytes for pair in stream._epochs.values() for a in pair)
    held += stream._block_first.nbytes + stream._block_count.nbytes
    assert held / 10_000_000 < 0.1


def test_shards_without_samples_are_passed_over_or_refused():
    table = ListedTable(
        name="t", modality=Modality.language, shard_samples=[0, 2, 0], lengths=[[1], [2]]
    )
    assert sorted(pieces(stream_of(table), 0, 2)) == [0, 1]
    with pytest.raises(DataError, match=r"no sample in any of them.*prepare"):
        stream_of(ListedTable(name="t", modality=Modality.language, shard_samples=[0], lengths=[]))


def test_neighbours_in_a_shard_land_far_apart():
    run = np.array(pieces(stream_of(text_table(samples=50_000), block_samples=256), 0, 50_000))
    place = np.argsort(run)
    apart = np.abs(place[:-256] - place[256:])  # of samples one block apart in the shard
    assert np.median(apart) > 10_000
