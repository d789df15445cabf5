"""Everything that is measured of one model, over all held-out sources.

In: a model, the held-out sources' configs, an encoder. Out: one ``Point``. What a source is asked
follows from what it is: every source gives a loss; captions a picture choice; conversations about
pictures are asked as questions, their answers scored as words or as boxes by what the records hold.
One process: held-out sets are small beside training.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from vltrain.batch import Modality, RecordKind, Sample
from vltrain.data.config import SourceConfig
from vltrain.data.remote import RemoteStore
from vltrain.data.sources import open_source
from vltrain.errors import ConfigError
from vltrain.evaluate.choices import picture_choice
from vltrain.evaluate.config import EvaluateConfig
from vltrain.evaluate.held_out import held_out_loss
from vltrain.evaluate.questions import answer_questions
from vltrain.evaluate.results import Accuracy, AnsweredSample, BoxAccuracy, HeldOutLoss, Point
from vltrain.evaluate.samples import read_samples
from vltrain.evaluate.subject import Subject
from vltrain.processing.encode import Encoder

_log = logging.getLogger(__name__)

_KEPT_SAMPLES = 6  # questions of each group that the report shows
_CHOICE_SEED = 0  # candidates are the same for every model and run


def evaluate_model(
    subject: Subject,
    *,
    sources: Mapping[str, SourceConfig],
    encoder: Encoder,
    config: EvaluateConfig,
    stage: str,
    step: int,
    model: str,
    remote: RemoteStore | None = None,
) -> Point:
    """Measure ``subject`` on every source. ``stage``, ``step`` and ``model`` name the point;
    ``remote`` reads the sources that lie behind URLs.

    Raises ConfigError without sources, DataError for one that cannot be used.
    """
    if not sources:
        raise ConfigError("data.held_out is empty: nothing to evaluate on; add a source to it")
    held_out: dict[str, HeldOutLoss] = {}
    questions: dict[str, dict[str, Accuracy]] = {}
    boxes: dict[str, dict[str, BoxAccuracy]] = {}
    choices: dict[str, Accuracy] = {}
    shown: dict[str, tuple[AnsweredSample, ...]] = {}
    for name, source in sources.items():
        begin = time.monotonic()
        samples, _ = read_samples(
            open_source(name, source, remote=remote), limit=config.max_samples
        )
        held_out[name] = held_out_loss(
            subject,
            samples=samples,
            encoder=encoder,
            learn=source.learn,
            batch_records=config.batch_records,
            blank_control=config.blank_control,
        )
        if source.kind is RecordKind.caption:
            choices[name] = _choice(subject, samples, encoder, config)
        if source.kind is RecordKind.conversation and source.modality is Modality.multimodal:
            found = answer_questions(
                subject,
                samples=samples,
                encoder=encoder,
                batch_records=config.batch_records,
                max_new_tokens=config.max_new_tokens,
                iou_threshold=config.iou_threshold,
                blank_control=config.blank_control,
                keep=_KEPT_SAMPLES,
            )
            questions[name], boxes[name], shown[name] = found.groups, found.boxes, found.samples
        _log.info("evaluated %s (%d records, %.0f s)", name, len(samples), time.monotonic() - begin)
    return Point(
        stage=stage,
        step=step,
        model=model,
        held_out=held_out,
        questions=questions,
        boxes=boxes,
        choices=choices,
        samples=shown,
    )


def _choice(
    subject: Subject, samples: list[Sample], encoder: Encoder, config: EvaluateConfig
) -> Accuracy:
    every = max(1, -(-len(samples) // config.choice_samples))
    return picture_choice(
        subject,
        samples=samples[::every],
        encoder=encoder,
        ways=config.choices,
        seed=_CHOICE_SEED,
        blank_control=config.blank_control,
    )
