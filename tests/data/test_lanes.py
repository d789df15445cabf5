"""Lanes: turns, and what a restore and a cursor cost."""

from __future__ import annotations

import json
import time

from plan_fakes import (
    LANGUAGE_ONLY,
    SMALL,
    make_plan,
    picture_table,
    take,
    text_table,
)

from vltrain.data.config import (
    MixtureConfig,
    OrderConfig,
    PackingConfig,
)


def test_lanes_take_turns_and_a_step_mixes_them():
    plan = make_plan(
        [text_table()], mixture=LANGUAGE_ONLY, packing=SMALL, order=OrderConfig(lanes=5)
    )
    assert [p.lane for p in take(plan, 1)[0].packs] == [0, 1, 2, 3, 4, 0, 1, 2]


def test_restore_anywhere_costs_the_open_windows_and_no_replay():
    def tables():
        return [text_table(samples=1_000_000), picture_table(samples=1_000_000)]

    plan = make_plan(tables(), order=OrderConfig(lanes=4), sequences=64)
    last = take(plan, 60)[-1]
    fresh = tables()
    resumed = make_plan(fresh, order=OrderConfig(lanes=4), sequences=64)
    begin = time.process_time()
    steps = resumed.steps(last.cursor_after)
    after = next(steps)
    seconds = time.process_time() - begin
    assert after == next(plan.steps(last.cursor_after))
    assert sum(table.reads for table in fresh) < 4 * 2 * 8  # lanes x sources x blocks of a window
    assert seconds < 2


def test_cursor_of_forty_sources_and_a_long_run_is_below_64_kb():
    tables = [text_table(f"t{i}", samples=1_000_000) for i in range(20)]
    tables += [picture_table(f"p{i}", samples=1_000_000) for i in range(20)]
    for grouping in (False, True):
        plan = make_plan(
            tables,
            sequences=128,
            mixture=MixtureConfig(language_share=0.7, grouping=grouping),
            packing=PackingConfig(enabled=True, sequence_length=4096, window_samples=1024),
        )
        cursor = take(plan, 3)[-1].cursor_after
        for group in cursor["groups"].values():
            shift = 10**12  # as after a run of 10^12 samples of each source
            group["positions"] = [p + shift for p in group["positions"]]
            group["taken_units"] = [u + shift * 4096 for u in group["taken_units"]]
        assert len(json.dumps(cursor)) <= 64 * 1024
