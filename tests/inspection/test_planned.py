"""A step planned alone is the step that a run reaches."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from tiny_mix import Opened, data_config, open_mix, text_source

from vltrain.data.assign import WorkCost, assign
from vltrain.data.config import MixtureConfig
from vltrain.data.digest import step_digest
from vltrain.data.loader import StepLoader
from vltrain.errors import CheckpointError, DataError
from vltrain.inspection.planned import plan_steps

STEPS = 12


@pytest.mark.parametrize("grouping", [False, True])
def test_alone_from_the_start_or_any_cursor(mix: Callable[..., Opened], grouping: bool) -> None:
    plan = mix(mixture=MixtureConfig(language_share=0.5, grouping=grouping)).plan
    run = list(islice(plan.steps(), STEPS))
    for number in range(1, STEPS + 1):
        alone = plan_steps(plan, first=number, last=number, cursor=None)
        assert alone.steps == (run[number - 1],)
        for before in range(1, number):
            cursor = run[before - 1].cursor_after
            found = plan_steps(plan, first=number, last=number, cursor=cursor)
            assert found.steps == alone.steps
            assert found.begun_after == before


def test_what_is_read_alone_is_what_two_ranks_read(mix: Callable[..., Opened]) -> None:
    opened = mix()
    cost = WorkCost(token=1.0, token_squared=0.0, image_token=1.0)
    digests: list[dict[int, bytes]] = [{} for _ in range(4)]
    for rank in range(2):
        planned = (
            (step, assign(step, world=2, micro=2, rank=rank, cost=cost))
            for step in islice(opened.plan.steps(), 4)
        )
        loader = StepLoader(planned, dataset=opened.dataset, workers=0, prefetch_steps=1)
        for step, micros in loader:
            for micro in micros:
                pairs = zip(micro.pack_numbers, micro.pack_digests, strict=True)
                digests[step.step].update(pairs)
    run = [step_digest([packs[number] for number in sorted(packs)]) for packs in digests]
    assert [view.digest for view in opened.views(4)] == run
    assert len(set(run)) == 4


def test_a_range(mix: Callable[..., Opened]) -> None:
    plan = mix().plan
    found = plan_steps(plan, first=3, last=5, cursor=None)
    assert [step.step for step in found.steps] == [2, 3, 4]
    assert found.samples == sum(
        len(pack.pieces) for step in islice(plan.steps(), 5) for pack in step.packs
    )
    assert found.cost().startswith("planned 5 steps forward from the start in ")


def test_a_step_behind_the_end_of_the_data(tmp_path: Path) -> None:
    texts = {f"k{i}": "x" * 60 for i in range(10)}  # 62 tokens: a pack each, 4 to a step
    source = text_source(tmp_path / "few", texts, max_epochs=1)
    config = data_config({"few": source}, mixture=MixtureConfig(language_share=1.0))
    plan = open_mix(config).plan
    assert plan_steps(plan, first=3, last=3, cursor=None).steps[0].packs
    with pytest.raises(DataError, match="step 4 is never reached: the plan ends after step 3"):
        plan_steps(plan, first=2, last=4, cursor=None)


def test_a_cursor_of_another_seed(mix: Callable[..., Opened]) -> None:
    cursor = next(mix(seed=2).plan.steps()).cursor_after
    with pytest.raises(CheckpointError, match="seed=2, this run has seed=1"):
        plan_steps(mix(seed=1).plan, first=2, last=2, cursor=cursor)
