"""A tiny mix of real shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_mix import Opened, caption_source, data_config, open_mix, text_source


@pytest.fixture
def mix(tmp_path: Path) -> Callable[..., Opened]:
    """``mix()``: 40 texts and 40 pictures. Settings as ``data_config``'s."""

    def build(*, seed: int = 1, **settings) -> Opened:
        words = {f"w{i}": f"some words {i}" for i in range(40)}
        pictures = {f"p{i}": f"picture {i}" for i in range(40)}
        sources = {
            "words": text_source(tmp_path / "words", words),
            "pictures": caption_source(tmp_path / "pictures", pictures),
        }
        return open_mix(data_config(sources, **settings), seed=seed)

    return build
