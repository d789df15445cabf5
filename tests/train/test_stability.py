from __future__ import annotations

import json

import pytest

from vltrain.train.config import StabilityConfig
from vltrain.train.stability import Stability, Verdict


def test_the_budget_is_for_a_window() -> None:
    stability = Stability(StabilityConfig(skip_budget=2, skip_window_steps=10, rollbacks=1))
    verdicts = [stability.not_finite(step) for step in (1, 5, 11, 12, 13)]
    assert verdicts == [Verdict.skip] * 3 + [Verdict.roll_back] * 2


def test_a_rollback_pays_for_the_skips_and_is_counted() -> None:
    stability = Stability(StabilityConfig(skip_budget=1, rollbacks=1))
    assert [stability.not_finite(s) for s in (1, 2)] == [Verdict.skip, Verdict.roll_back]
    assert stability.skipped_lately(2) == 2
    stability.rolled_back(to=0, at=2)
    assert stability.skipped_lately(2) == 0
    assert [stability.not_finite(s) for s in (3, 4)] == [Verdict.skip, Verdict.stop]


def test_skipped_steps_count_for_a_window() -> None:
    stability = Stability(StabilityConfig(skip_window_steps=10))
    stability.not_finite(5)
    assert [stability.skipped_lately(step) for step in (5, 14, 15)] == [1, 1, 0]


def test_the_state_comes_back() -> None:
    config = StabilityConfig(skip_budget=1, rollbacks=1)
    first = Stability(config)
    first.rolled_back(to=3, at=6)
    first.not_finite(7)
    second = Stability(config, state=json.loads(json.dumps(first.state())))
    assert second.left == ((3, 6),)
    assert second.skipped_lately(8) == 1
    assert second.not_finite(8) is Verdict.stop


def test_the_state_of_before_rollbacks_were_listed() -> None:
    stability = Stability(StabilityConfig(), state={"not_finite": [], "rollbacks": 1})
    assert stability.left == ()


@pytest.mark.parametrize(("loss", "told"), [(2.7, False), (2.8, True)])
def test_a_jump_is_measured_in_deviations_of_its_own_modality(loss: float, told: bool) -> None:
    """Median 2, median absolute deviation 0.05: the alarm at 2 + 10 x 1.4826 x 0.05 = 2.7413."""
    stability = Stability(StabilityConfig())
    for number in range(20):
        assert stability.jump(2 + 0.05 * (-1) ** number, modality="language") is None
        assert stability.jump(8.0, modality="multimodal") is None
    assert (stability.jump(loss, modality="language") is not None) == told


@pytest.mark.parametrize(
    ("share", "told"), [(0.19, True), (0.21, False), (0.39, False), (0.41, True)]
)
def test_the_share_of_labels_has_a_band(share: float, told: bool) -> None:
    """Median 0.3, median absolute deviation 0.0067: the alarm at 0.3 -+ 10 x 1.4826 x 0.0067."""
    stability = Stability(StabilityConfig())
    for number in range(20):
        steady = 0.3 + 0.0067 * (-1) ** number
        assert stability.label_jump(steady, modality="multimodal") is None
        assert stability.label_jump(0.99, modality="language") is None
    said = stability.label_jump(share, modality="multimodal")
    assert (said is not None) == told
    assert said is None or said == (
        f"{share:.1%} of the tokens are learned after a median of 30.0% in the last 20 multimodal "
        "steps; the alarm is at 9.9% more or less (stability.label_share_deviations=10)"
    )


def test_no_alarm_of_labels_where_it_is_off() -> None:
    silent = Stability(StabilityConfig(label_share_deviations=0))
    for _ in range(30):
        silent.label_jump(0.5, modality=None)
    assert silent.label_jump(0.0, modality=None) is None


def test_no_alarm_before_there_is_something_to_compare_or_where_it_is_off() -> None:
    stability = Stability(StabilityConfig())
    for _ in range(19):
        stability.jump(1.0, modality=None)
    assert stability.jump(100.0, modality=None) is None
    silent = Stability(StabilityConfig(spike_deviations=0))
    for _ in range(30):
        silent.jump(1.0, modality=None)
    assert silent.jump(100.0, modality=None) is None
