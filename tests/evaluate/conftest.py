"""A model made of rules, so that every expected figure can be written down by hand.

It sees the mean colour of a picture. Each target token costs 1 nat where the row's text names
that colour, 3 where it does not, 4 where the picture is of no named colour (blanked), 2 where
there is none. Asked, it answers with the colour, or with "grey".
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor

from vltrain.batch import (
    IGNORE,
    Example,
    Learn,
    Origin,
    RecordKind,
    Role,
    Sample,
    StoredImage,
    Turn,
)
from vltrain.evaluate.subject import Subject
from vltrain.processing.encode import Encoder, EncodeRules
from vltrain.processing.geometry import FixedGeometry
from vltrain.processing.tokens import TextTokenizer
from vltrain.processing.train_tokenizer import IMAGE_TOKEN, IMAGE_TOKEN_ID, train_bpe

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
TOKENS_PER_IMAGE = 4


def color_of(feature: Tensor) -> str | None:
    rgb = tuple(round(float(x)) for x in feature)
    return next((name for name, value in COLORS.items() if value == rgb), None)


class RuleModel:
    """Scorer, towers and generator in one."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        assert images.dtype == torch.uint8
        return {"color": images.float().mean(dim=(1, 2))}

    def row_losses(
        self,
        ids: Tensor,
        positions: Tensor,
        segments: Tensor,
        targets: Tensor,
        image_positions: Tensor,
        features: dict[str, Tensor],
    ) -> Tensor:
        assert (ids.flatten()[image_positions] == self.tokenizer.image_id).all()
        assert len(image_positions) == TOKENS_PER_IMAGE * len(features["color"])
        row_of_image = (image_positions[::TOKENS_PER_IMAGE] // ids.shape[1]).tolist()
        losses = []
        for row in range(len(ids)):
            length = int((segments[row] > 0).sum())
            assert positions[row, :length].tolist() == list(range(length))
            text = self.tokenizer.decode(ids[row, :length].tolist(), skip_special=True)
            cost = 2.0
            if row in row_of_image:
                color = color_of(features["color"][row_of_image.index(row)])
                cost = 4.0 if color is None else 1.0 if color in text else 3.0
            losses.append(cost * int((targets[row] != IGNORE).sum()))
        return torch.tensor(losses)

    def generate(
        self, prompts: Sequence[Example], *, images: Tensor, max_new_tokens: int
    ) -> list[list[int]]:
        colors = iter(self.encode(images)["color"])
        answers = []
        for prompt in prompts:
            assert not prompt.learned.any()
            color = color_of(next(colors)) if len(prompt.images) else None
            answers.append(self.tokenizer.encode(f" {color or 'grey'}")[:max_new_tokens])
        return answers


@pytest.fixture(scope="session")
def rule_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    directory = train_bpe(
        ["a red thing, a green thing"], vocab_size=280, directory=tmp_path_factory.mktemp("t")
    )
    return TextTokenizer.load(directory, image_token=IMAGE_TOKEN, image_token_id=IMAGE_TOKEN_ID)


@pytest.fixture(scope="session")
def rule_encoder(rule_tokenizer: TextTokenizer) -> Encoder:
    rules = EncodeRules(learn=Learn.all, sequence_length=96, max_images=2)
    return Encoder(rule_tokenizer, FixedGeometry(tokens_per_image=TOKENS_PER_IMAGE), rules)


@pytest.fixture(scope="session")
def rule_subject(rule_tokenizer: TextTokenizer) -> Subject:
    model = RuleModel(rule_tokenizer)
    return Subject(
        scorer=model,
        towers=model,
        generate=model.generate,
        device=torch.device("cpu"),
        image_side=32,
        pad_color=(122, 116, 104),
        rounding="official",
    )


def stored_image(color: str) -> StoredImage:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), COLORS[color]).save(buffer, format="PNG")
    return StoredImage(member="png", data=buffer.getvalue(), width=32, height=32)


BROKEN_IMAGE = StoredImage(member="png", data=b"no image", width=32, height=32)


@pytest.fixture(scope="session")
def make_caption():
    def make(key: str, text: str, *, color: str | None) -> Sample:
        image = stored_image(color) if color else BROKEN_IMAGE
        turn = Turn(role=Role.document, content=(0, text))
        return Sample(
            origin=Origin(source="colors", shard="a.tar", key=key),
            kind=RecordKind.caption,
            turns=(turn,),
            images=(image,),
        )

    return make


@pytest.fixture(scope="session")
def make_text():
    def make(key: str, text: str) -> Sample:
        return Sample(
            origin=Origin(source="prose", shard="a.tar", key=key),
            kind=RecordKind.text,
            turns=(Turn(role=Role.document, content=(text,)),),
            images=(),
        )

    return make


@pytest.fixture(scope="session")
def make_question():
    def make(key: str, question: str, answer: str, *, color: str | None) -> Sample:
        images = (stored_image(color),) if color else ()
        asked = (0, question) if color else (question,)
        return Sample(
            origin=Origin(source="quiz", shard="a.tar", key=key),
            kind=RecordKind.conversation,
            turns=(
                Turn(role=Role.user, content=asked),
                Turn(role=Role.assistant, content=(answer,)),
            ),
            images=images,
        )

    return make


@pytest.fixture(scope="session")
def broken_question():
    def make(key: str) -> Sample:
        return Sample(
            origin=Origin(source="quiz", shard="a.tar", key=key),
            kind=RecordKind.conversation,
            turns=(
                Turn(role=Role.user, content=(0, "What color?")),
                Turn(role=Role.assistant, content=("red",)),
            ),
            images=(BROKEN_IMAGE,),
        )

    return make
