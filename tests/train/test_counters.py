"""Sums of a run: what share they tell, and back from a checkpoint."""

from __future__ import annotations

import pytest

from vltrain.data.config import RatioUnit
from vltrain.train.counters import Counters


def test_language_share_in_each_unit() -> None:
    counters = Counters(
        tokens={"language": 30, "multimodal": 70},
        samples={"language": 1, "multimodal": 1},
        supervised={"language": 9, "multimodal": 1},
    )
    assert counters.language_share(RatioUnit.tokens) == pytest.approx(0.3)
    assert counters.language_share(RatioUnit.samples) == pytest.approx(0.5)
    assert counters.language_share(RatioUnit.supervised_tokens) == pytest.approx(0.9)


def test_no_share_before_the_first_step() -> None:
    assert Counters().language_share(RatioUnit.tokens) is None


def test_comes_back_from_json_as_it_was() -> None:
    counters = Counters(images=3, holes=1)
    assert Counters.from_json(counters.to_json()) == counters  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Counters.from_json({"unknown": 1})
