"""A short start from scratch for tiny models, where no published weights can be had.

It stands for what SAM, SigLIP and the language model learned before they were published: the
language model on plain text, SigLIP by telling which words a picture's caption holds (SuperClass,
arXiv:2411.03313), SAM by drawing the picture again (its published encoder began as a masked
autoencoder). Rejected: captioning through a throw-away language model, which in these few steps
learns the captions' language and leaves the towers as they were drawn; words for both towers,
after which neither keeps the detail that a digit needs. It is a demonstration's first step and no
stage of the method: one process, plain AdamW, no engine, no checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vltrain.batch import IGNORE, MicroBatch
from vltrain.models.build import BuiltModel

DRAWN_SIDE = 4
"""Pixels a side to which each place of SAM's grid is drawn again."""


def warm_up(
    objective: nn.Module,
    *,
    batches: Iterable[MicroBatch],
    steps: int,
    lr: float,
    report: Callable[[int, float], None],
) -> None:
    """Train every trainable parameter of ``objective``, a module from batch to mean loss, for
    ``steps`` batches.

    lr: peak, after a linear warm-up of a tenth of the steps, then cosine to a tenth of it. report:
    called after each step with (step, loss).
    """
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    for step, batch in enumerate(batches, start=1):
        warm = min(1.0, step / max(1, steps // 10))
        cosine = 0.55 + 0.45 * math.cos(math.pi * step / steps)
        for group in optimizer.param_groups:
            group["lr"] = lr * warm * cosine
        loss = objective(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        report(step, float(loss.detach()))
        if step >= steps:
            break


class NextToken(nn.Module):
    """Mean next-token loss of the whole model, nats per target."""

    def __init__(self, model: BuiltModel) -> None:
        super().__init__()
        self.module, self._encode = model.module, model.frozen.encode

    def forward(self, batch: MicroBatch) -> Tensor:
        """One micro-batch -> scalar."""
        loss = self.module(
            batch.ids,
            batch.positions,
            batch.segments,
            batch.targets,
            batch.image_positions,
            {**self._encode(batch.images), "grids": batch.grids},
        )
        return loss / max(1, sum(batch.num_targets.values()))


class TowersApart(nn.Module):
    """What each tower is for, with linear layers that are thrown away: SigLIP tells which tokens
    the caption holds, from its mean feature; SAM, where the model has one, draws each place
    again, from that place's feature, so that detail and position stay in it. Of a tiled image they
    see the whole."""

    def __init__(self, model: BuiltModel) -> None:
        super().__init__()
        config = model.config
        assert config.siglip is not None, "the caption's words are SigLIP's"
        self.siglip = model.tower("siglip")
        self.sam = None
        if config.sam is not None:
            self.sam = model.tower("sam")
            self.drawn = nn.Conv2d(config.sam.out_channels, 3 * DRAWN_SIDE**2, kernel_size=1)
        self.told = nn.Linear(config.siglip.width, config.language.vocab_size)
        self._encode = model.frozen.encode
        self._captions = 0
        self._with_token = torch.zeros(config.language.vocab_size)

    def forward(self, batch: MicroBatch) -> Tensor:
        """One micro-batch, one picture per row or more -> scalar, the towers' losses added."""
        pixels = self._encode(batch.whole_images)
        siglip = self.siglip(pixels["siglip_pixels"])["siglip"].mean(1)
        words = -(self.words(batch) * self.told(siglip).log_softmax(-1)).sum(-1).mean()
        if self.sam is None:
            return words
        places = self.sam(pixels["sam_pixels"])["sam_last"]
        small = F.adaptive_avg_pool2d(pixels["sam_pixels"], DRAWN_SIDE * places.shape[-1])
        return words + F.mse_loss(self.drawn(places), F.pixel_unshuffle(small, DRAWN_SIDE))

    def words(self, batch: MicroBatch) -> Tensor:
        """What each picture is asked for: (n, vocabulary), rows that sum to 1."""
        rows, length = batch.targets.shape
        held = torch.zeros(rows, len(self._with_token))
        learned = batch.targets != IGNORE
        held[learned.nonzero()[:, 0], batch.targets[learned]] = 1.0
        first = batch.image_positions[batch.image_tokens.cumsum(0) - batch.image_tokens]
        held = held[first // length]
        self._captions += len(held)
        self._with_token += held.sum(0)
        held = held * torch.log((1 + self._captions) / (1 + self._with_token)).clamp(min=1e-3)
        return held / held.sum(1, keepdim=True).clamp(min=1e-6)
