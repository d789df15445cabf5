"""Routers over a run: what follows each step, what a checkpoint keeps of them, what is logged.

In: the built model. Out, after each step, statistics for its row; in checkpoints, the corrections
of ``noaux_tc``. A model without experts has nothing of all this.
"""

from __future__ import annotations

from typing import Any

from vltrain.checkpoint.manifest import Manifest
from vltrain.models.build import BuiltModel
from vltrain.models.moe_model import MoeVisionLanguageModel
from vltrain.models.router_balance import RouterBalance, RouterStatistics
from vltrain.models.trainable import part_of

DIGITS = 4
"""Decimals of ratios in the logs."""


def balance_of(built: BuiltModel) -> RouterBalance | None:
    """The state of the model's routers; None without experts."""
    module = built.module
    return module.language.balance if isinstance(module, MoeVisionLanguageModel) else None


def finish_step(built: BuiltModel, *, updated: bool, with_loads: bool) -> dict[str, Any] | None:
    """What a step did to the routers, for its row (collective). updated: an update was made, and
    so the corrections move, if the language model trains: they are as frozen as the rest of it.
    with_loads: each expert's tokens too."""
    balance = balance_of(built)
    if balance is None:
        return None
    if not updated:
        balance.forget_step()
        return None
    trains = any(part_of(name) == "language" for name in built.trainable)
    found = balance.finish_step(step_size=built.config.router.correction_step if trains else 0.0)
    return described(found, with_loads=with_loads)


def described(found: RouterStatistics, *, with_loads: bool) -> dict[str, Any]:
    """Statistics as a row holds them: lists over the layers that have experts."""
    row: dict[str, Any] = {
        "max_over_mean": [round(ratio, DIGITS) for ratio in found.max_over_mean],
        "entropy": [round(share, DIGITS) for share in found.entropy],
    }
    if with_loads:
        row["loads"] = [list(layer) for layer in found.loads]
    return row


def state_of(built: BuiltModel) -> list[list[float]] | None:
    """What a checkpoint keeps."""
    balance = balance_of(built)
    return None if balance is None else balance.state()


def restore(built: BuiltModel, manifest: Manifest) -> None:
    """Corrections as a checkpoint has them. Raises CheckpointError where it is of another model."""
    balance = balance_of(built)
    if balance is not None:
        balance.restore(manifest.counters.get("routers"))
