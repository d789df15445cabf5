"""A model of tiles is evaluated on what it was trained on: squares with their grids."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from model_yaml import model_config
from PIL import Image

from vltrain.batch import Learn, Origin, RecordKind, Role, Sample, StoredImage, Turn
from vltrain.evaluate.choices import picture_choice
from vltrain.evaluate.questions import answer_questions
from vltrain.evaluate.subject import Subject, grids_of, subject_of
from vltrain.models.build import build_model
from vltrain.models.config import ModelConfig
from vltrain.processing.encode import Encoder, EncodeRules

PAD = 127


def picture(width: int, height: int, *, left: str, right: str) -> StoredImage:
    """Two halves in two colours."""
    image = Image.new("RGB", (width, height), left)
    image.paste(right, (width // 2, 0, width, height))
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return StoredImage(member="png", data=stream.getvalue(), width=width, height=height)


WIDE = picture(56, 28, left="red", right="blue")  # two tiles of 28 pixels side by side
SQUARE = picture(28, 28, left="black", right="black")


def caption(key: str, text: str, image: StoredImage) -> Sample:
    return Sample(
        origin=Origin(source="s", shard="a.tar", key=key),
        kind=RecordKind.caption,
        turns=(Turn(role=Role.document, content=(0, text)),),
        images=(image,),
    )


@pytest.fixture(scope="module")
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return model_config("tiny_vl2")


@pytest.fixture(scope="module")
def subject(config: ModelConfig) -> Subject:
    built = build_model(
        config,
        trainable=(),
        freeze=(),
        dtype=torch.float32,
        frozen_dtype=torch.float32,
        device="cpu",
        seed=0,
    )
    return subject_of(built, end_id=1)


@pytest.fixture(scope="module")
def encoder(config: ModelConfig, rule_tokenizer) -> Encoder:
    rules = EncodeRules(learn=Learn.all, sequence_length=512, max_images=2)
    return Encoder(rule_tokenizer, config.geometry, rules)


def test_squares_are_the_whole_and_then_the_tiles(subject: Subject, encoder: Encoder) -> None:
    example = encoder.encode(caption("1", "a flag", WIDE))
    assert grids_of([example]).tolist() == [[2, 1]]
    whole, left, right = subject.squares(example)
    assert (whole[0] == PAD).all()  # 28 x 14, centred on the pad colour
    assert (left == (255, 0, 0)).all()
    assert (right == (0, 0, 255)).all()
    blank = subject.pictures([subject.squares(example)], blank=True)
    assert blank.shape == (3, 28, 28, 3)
    assert (blank == PAD).all()


def test_losses_of_a_batch_are_those_of_each_alone(subject: Subject, encoder: Encoder) -> None:
    examples = [
        encoder.encode(caption("1", "a flag", WIDE)),
        encoder.encode(caption("2", "night", SQUARE)),
    ]
    squares = [subject.squares(example) for example in examples]

    def losses(chosen: list[int], *, blank: bool) -> np.ndarray:
        some = [examples[n] for n in chosen]
        features = subject.features(some, [squares[n] for n in chosen], blank=blank)
        return subject.losses(some, features=features)

    together = losses([0, 1], blank=False)
    apart = [losses([n], blank=False)[0] for n in (0, 1)]
    assert together == pytest.approx(apart, rel=1e-5)
    assert abs(losses([0], blank=True)[0] - together[0]) > 1e-4


def test_choices_and_questions_about_tiles(subject: Subject, encoder: Encoder) -> None:
    images = [WIDE, SQUARE, picture(60, 30, left="green", right="white")]
    captions = [caption(str(n), f"picture {n}", image) for n, image in enumerate(images)]
    choice = picture_choice(
        subject, samples=captions, encoder=encoder, ways=3, seed=0, blank_control=True
    )
    assert choice.asked == 3
    questions = [
        Sample(
            origin=Origin(source="s", shard="a.tar", key=f"what-{n}"),
            kind=RecordKind.conversation,
            turns=(
                Turn(role=Role.user, content=(0, "What?")),
                Turn(role=Role.assistant, content=("a flag",)),
            ),
            images=(image,),
        )
        for n, image in enumerate(images)
    ]
    found = answer_questions(
        subject,
        samples=questions,
        encoder=encoder,
        batch_records=2,
        max_new_tokens=3,
        iou_threshold=0.5,
        blank_control=True,
        keep=1,
    )
    assert found.groups["what"].asked == 3
    assert found.faults == 0
