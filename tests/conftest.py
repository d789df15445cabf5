"""What all tests share: composed configs, and processes that cannot hang."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def compose() -> Callable[..., object]:
    """compose("stage=2", "+experiment=demo", ...) -> RunConfig, as launch/train.py would."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from vltrain.runconfig import clean_arguments, from_hydra, register_schema

    def composed(*words: str):
        register_schema()
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return from_hydra(hydra_compose("train", overrides=clean_arguments(words)))

    return composed


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For pytest-xdist: a file stays on one worker, and so does all of integration/, whose fixture
    trains three stages once."""
    for item in items:
        folder = item.path.parent.name
        group = folder if folder == "integration" else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
