"""A short start from scratch for tiny models, where no published weights can be had.

It stands for what SAM, SigLIP and the language model learned before they were published: the
language model on plain text, the towers by captioning through a language model and an adaptor that
are thrown away afterwards. It is a demonstration's first step and no stage of the method: one
process, plain AdamW, no engine, no checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

from vltrain.batch import MicroBatch
from vltrain.models.build import BuiltModel


def warm_up(
    model: BuiltModel,
    *,
    batches: Iterable[MicroBatch],
    steps: int,
    lr: float,
    report: Callable[[int, float], None],
) -> None:
    """Train every trainable parameter of ``model`` for ``steps`` batches.

    lr: peak, after a linear warm-up of a tenth of the steps, then cosine to a tenth of it. report:
    called after each step with (step, mean loss per target in nats).
    """
    parameters = [p for p in model.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    for step, batch in enumerate(batches, start=1):
        warm = min(1.0, step / max(1, steps // 10))
        cosine = 0.55 + 0.45 * math.cos(math.pi * step / steps)
        for group in optimizer.param_groups:
            group["lr"] = lr * warm * cosine
        loss = model.module(
            batch.ids,
            batch.positions,
            batch.segments,
            batch.targets,
            batch.image_positions,
            model.frozen.encode(batch.images),
        )
        loss = loss / max(1, sum(batch.num_targets.values()))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        report(step, float(loss.detach()))
        if step >= steps:
            break
