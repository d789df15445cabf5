"""Config of checkpoints."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class CheckpointConfig:
    every_steps: int = 1000
    """Steps between checkpoints; the stage's end always has one."""
    keep_last: int = 3
    """A good one that the run could go back to is kept besides, where it is not among these."""
    keep_every_steps: int = 0
    """Also keep every checkpoint whose step is a multiple of this; 0 keeps none beyond
    keep_last."""
    keep_best: int = 0
    """Also keep this many with the lowest training loss, taken over the steps since the checkpoint
    before."""
    background: bool = True
    """Write from a snapshot in host memory, both while training goes on; false waits for the
    disk."""
    write_timeout_seconds: int = 3600
    """Longest that the ranks wait for one another's part of a checkpoint."""
