"""Loss on records that were never trained on, with their pictures and with the pictures blanked.

In: samples of one held-out source. Out: nats per target. The blank figure is the control: where
it is as good as the other, the model does not look (a caption loss can fall far while it stays
blind).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from vltrain.batch import Example, Learn, Sample
from vltrain.errors import DataError, RecordFault
from vltrain.evaluate.results import HeldOutLoss
from vltrain.evaluate.subject import Subject, batched
from vltrain.processing.encode import Encoder

_log = logging.getLogger(__name__)


def held_out_loss(
    subject: Subject,
    *,
    samples: Iterable[Sample],
    encoder: Encoder,
    learn: Learn | None,
    batch_records: int,
    blank_control: bool,
) -> HeldOutLoss:
    """Sum of token losses over targets of all samples (long documents in pieces, as in training).

    Records that cannot be used are counted in ``faults``. Raises DataError when none can.
    """
    pieces, records, faults = encode_all(samples, encoder=encoder, learn=learn)
    pieces.sort(key=lambda piece: len(piece.ids))
    loss = blank_loss = 0.0
    targets = images = 0
    for batch in batched(pieces, batch_records):
        usable, squares = [], []
        for piece in batch:
            try:
                squares.append(subject.squares(piece))
            except RecordFault as fault:
                _log.warning("held out: %s left out: %s", piece.origin, fault)
                faults, records = faults + 1, records - 1
            else:
                usable.append(piece)
        if not usable:
            continue
        targets += sum(piece.num_supervised for piece in usable)
        images += sum(len(piece.images) for piece in usable)
        features = subject.features(usable, squares, blank=False)
        loss_of_batch = float(subject.losses(usable, features=features).sum())
        loss += loss_of_batch
        if blank_control and any(piece.images for piece in usable):
            features = subject.features(usable, squares, blank=True)
            loss_of_batch = float(subject.losses(usable, features=features).sum())
        blank_loss += loss_of_batch
    if not targets:
        raise DataError(
            f"held-out source has no usable targets: {records} records, {faults} faults; "
            "check data.held_out"
        )
    return HeldOutLoss(
        records=records,
        targets=targets,
        loss=loss / targets,
        blank_loss=blank_loss / targets if blank_control and images else None,
        faults=faults,
    )


def encode_all(
    samples: Iterable[Sample], *, encoder: Encoder, learn: Learn | None
) -> tuple[list[Example], int, int]:
    """All pieces with anything to predict, the number of records they come from, and of those that
    cannot be encoded."""
    pieces: list[Example] = []
    records = faults = 0
    for sample in samples:
        try:
            sizes = encoder.measure(sample, learn=learn)
        except RecordFault as fault:
            _log.warning("held out: %s left out: %s", sample.origin, fault)
            faults += 1
            continue
        records += 1
        for size in sizes:
            if size.supervised:
                pieces.append(
                    encoder.piece(sample, start=size.start, tokens=size.tokens, learn=learn)
                )
    return pieces, records, faults
