from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vltrain.metrics.rows import StepRow


@pytest.fixture
def make_row() -> Callable[..., StepRow]:
    """A step row with plain values; keywords replace them."""

    def make(step: int, **changes: Any) -> StepRow:
        values: dict[str, Any] = {
            "step": step,
            "time": 1000.0 + step,
            "stage": "align",
            "loss": 2.5,
            "lr": {"adaptor": 1e-3},
            "grad_norm": 0.5,
            "modality": "multimodal",
            "tokens": {"language": 0, "multimodal": 600},
            "planned_tokens": {"language": 0, "multimodal": 620},
            "supervised": {"language": 0, "multimodal": 100},
            "images": 4,
            "packs": 4,
            "holes": 0,
            "language_share_target": 0.0,
            "language_share_realised": 0.0,
            "digest": "ab" * 16,
            "chain": "cd" * 16,
            "seconds": 2.0,
            "data_wait_seconds": 0.5,
            "skipped": False,
        }
        return StepRow(**{**values, **changes})

    return make
