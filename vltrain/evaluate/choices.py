"""Picture-to-caption choice: which of ten captions belongs to the picture?

In: caption samples. Out: how often the true caption has the highest mean log-likelihood per
token, given the picture; guessing gives one in ten. It needs no question answering, so it shows
what an aligned adaptor has learned before any instruction was seen. The blank control ranks the
same candidates without sight: what it scores above guessing is the language model's taste, not
vision.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vltrain.batch import Example, Learn, Sample
from vltrain.errors import DataError, RecordFault
from vltrain.evaluate.results import Accuracy
from vltrain.evaluate.subject import Subject
from vltrain.processing.encode import Encoder

_log = logging.getLogger(__name__)


def picture_choice(
    subject: Subject,
    *,
    samples: Sequence[Sample],
    encoder: Encoder,
    ways: int,
    seed: int,
    blank_control: bool,
) -> Accuracy:
    """Rank the true caption of each sample among ``ways`` distinct captions of the same source.

    The candidates are drawn by ``seed`` alone, so every model is asked the same. Records that
    cannot be used are left out. Raises DataError when there are fewer than ``ways`` distinct
    captions.
    """
    usable = [s for s in samples if len(s.images) == 1 and caption_of(s)]
    captions = sorted({caption_of(s) for s in usable})
    if len(captions) < ways:
        raise DataError(
            f"picture choice needs {ways} distinct captions, found {len(captions)} in "
            f"{len(usable)} records with one image; lower evaluate.choices or name a larger "
            "held-out source"
        )
    draw = np.random.default_rng(seed)
    asked = right = right_blank = 0
    blind: dict[bytes, float] = {}
    for sample in usable:
        true = caption_of(sample)
        others = [caption for caption in captions if caption != true]
        wrong = [others[i] for i in draw.choice(len(others), size=ways - 1, replace=False)]
        try:
            examples = [_with_caption(sample, caption, encoder) for caption in (true, *wrong)]
            squares = subject.squares(examples[0])
        except RecordFault as fault:
            _log.warning("picture choice: %s left out: %s", sample.origin, fault)
            continue
        asked += 1
        right += _is_first_likeliest(_mean_losses(subject, examples, squares, blank=False))
        if blank_control:
            # Unseen, a caption is as likely beside one picture as beside any other: score it once.
            new = [e for e in examples if e.ids.tobytes() not in blind]
            if new:
                found = _mean_losses(subject, new, squares, blank=True)
                blind.update(zip([e.ids.tobytes() for e in new], found, strict=True))
            losses = np.asarray([blind[e.ids.tobytes()] for e in examples])
            right_blank += _is_first_likeliest(losses)
    return Accuracy(
        asked=asked,
        right=right,
        right_blank=right_blank if blank_control else None,
        chance=1 / ways,
    )


def caption_of(sample: Sample) -> str:
    """All text of the sample, stripped."""
    texts: Iterable[str] = (
        part for turn in sample.turns for part in turn.content if isinstance(part, str)
    )
    return "".join(texts).strip()


def _with_caption(sample: Sample, caption: str, encoder: Encoder) -> Example:
    turn = replace(sample.turns[0], content=(0, caption))
    return encoder.encode(replace(sample, turns=(turn,)), learn=Learn.all)


def _mean_losses(
    subject: Subject, examples: Sequence[Example], squares: np.ndarray, *, blank: bool
) -> np.ndarray:
    """Nats per target of each example beside the picture, (B,)."""
    features = {
        name: _repeat(feature, len(examples))
        for name, feature in subject.features(examples[:1], [squares], blank=blank).items()
    }
    losses = subject.losses(examples, features=features)
    return losses / np.asarray([example.num_supervised for example in examples])


def _is_first_likeliest(losses: np.ndarray) -> bool:
    """True where the first loss is below every other (a tie is no success)."""
    return bool(losses[0] < losses[1:].min())


def _repeat(feature: Tensor, times: int) -> Tensor:
    """One picture's feature (its squares, ...) for ``times`` rows."""
    return torch.cat([feature] * times)
