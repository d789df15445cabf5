"""A disk that fills up while rows are written ends the run with what to do, not a traceback."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from vltrain.assemble.recording import Recording
from vltrain.errors import RecordingError


def test_a_full_disk_is_said(compose, tmp_path: Path) -> None:
    config = compose(
        "stage=1", "+experiment=demo", f"run.root={tmp_path}", "metrics.wandb.enabled=false"
    )
    config.run_dir.mkdir(parents=True)
    recording = Recording(config, resumed=None, peak_flops=None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(RecordingError, match=r"cannot be written: .* Make room .* goes on"):
            recording.event("stopped", 3, "x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        recording.close()
