"""The random states of one process, into a checkpoint and back.

In: torch's generators (CPU, and this process's GPU). Out: uint8 tensors, in a file of each rank's
own. The data draws nothing from them (its order follows from the seed), and nor do the models as
configured; dropout or an operation that draws would go on as if never stopped, with the same number
of ranks. With another number there is nothing to go on from, and the seed begins again.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch


def seed_generators(seed: int, *, rank: int) -> None:
    """Different on every rank, so that no two draw the same dropout."""
    torch.manual_seed((seed << 20) + rank)


def capture() -> dict[str, torch.Tensor]:
    """name -> state (1-D uint8, on the CPU)."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore(states: Mapping[str, torch.Tensor]) -> None:
    """Set the generators to ``states``; one that this process does not have is left out."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(states["cuda"])
