"""Records with boxes, from their JSON to token ids and, where they cannot be meant, to the list of
what was left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shard_makers import IMAGE_TOKENS, png, source_config, write_tar

from vltrain.batch import (
    Boxes,
    Learn,
    Origin,
    Part,
    RecordKind,
    Role,
    Sample,
    Special,
    Template,
)
from vltrain.data.config import FaultConfig
from vltrain.data.index import Member
from vltrain.data.messages import parse_message
from vltrain.data.prepare import prepare_sources
from vltrain.data.records import parse_record
from vltrain.data.report import PrepareReport
from vltrain.data.writer import conversation_record
from vltrain.errors import DataError, FaultBudgetExceeded, RecordFault
from vltrain.processing.encode import Encoder, EncodeRules
from vltrain.processing.geometry import FixedGeometry
from vltrain.processing.tokens import TextTokenizer
from vltrain.processing.train_tokenizer import train_bpe

REF = {"type": "ref", "text": "the cat"}
ASKED = [{"type": "image"}, {"type": "text", "text": "\nWhere is "}, REF]


def boxes(*found: list[float], **more: object) -> dict[str, object]:
    return {"type": "boxes", "boxes": list(found), **more}


def record(key: str, *answer: dict[str, object]) -> dict[str, bytes]:
    """A question about a picture of 6 x 4 pixels; members by extension."""
    messages = [("user", ASKED), ("assistant", list(answer))]
    found = conversation_record(key, messages=messages, images=[png()])
    return {
        extension: data if isinstance(data, bytes) else json.dumps(data).encode()
        for extension, data in found.members.items()
    }


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """One token a byte."""
    directory = train_bpe(
        ["a"],
        vocab_size=267,
        directory=tmp_path_factory.mktemp("vl2"),
        image_token="<image>",
        template=Template.deepseek_vl2,
    )
    rules = EncodeRules(
        learn=Learn.answers, template=Template.deepseek_vl2, sequence_length=200, max_images=2
    )
    tokenizer = TextTokenizer.load(directory, image_token="<image>", image_token_id=3)
    return Encoder(tokenizer, FixedGeometry(tokens_per_image=IMAGE_TOKENS), rules)


def parts(*content: dict[str, object]) -> list[Part | None]:
    return parse_message({"role": "user", "content": list(content)})[1]


def test_parts_of_a_message() -> None:
    assert parts(*ASKED, {"type": "grounding"}, boxes([1, 2, 3, 4.5], [0, 0, 1, 1], image=1)) == [
        None,
        "\nWhere is ",
        *(Special.ref, "the cat", Special.ref_end),
        Special.grounding,
        Special.det,
        Boxes(image=1, boxes=((1, 2, 3, 4.5), (0, 0, 1, 1))),
        Special.det_end,
    ]
    assert Boxes(image=0, boxes=((0, 0, 1, 1),)) in parts(boxes([0, 0, 1, 1]))


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "ref"}, "has type 'ref': expected text"),
        (boxes([1, 2, 3]), "lists of four numbers"),
        (boxes([1, 2, 3, "4"]), "lists of four numbers"),
        (boxes([1, 2, 3, True]), "lists of four numbers"),
        (boxes([1, 2, 3, 10**400]), "lists of four numbers"),
        ({"type": "boxes", "boxes": [1, 2, 3, 4]}, "lists of four numbers"),
        ({"type": "boxes"}, "boxes of a user message are not an image's number and lists"),
        (boxes([0, 0, 1, 1], image="0"), "not an image's number"),
    ],
)
def test_parts_that_are_not_understood(part: dict[str, object], words: str) -> None:
    with pytest.raises(RecordFault, match=words) as fault:
        parts(part)
    assert fault.value.reason == "bad_record"


def test_from_json_to_ids(encoder: Encoder) -> None:
    stored = record("k", REF, boxes([1, 0, 3, 4]))
    members = [
        Member(extension="json", offset=0, size=1),
        Member(extension="0.png", offset=0, size=1, width=6, height=4),
    ]
    origin = Origin(source="s", shard="0.tar", key="k")
    sample: Sample = parse_record(
        members,
        origin=origin,
        kind=RecordKind.conversation,
        fields={},
        read=lambda member: stored[member.extension],
    )
    assert sample.turns[0].role is Role.user
    example = encoder.encode(sample)
    # 1 / 6 * 999 = 166.5, 3 / 6 * 999 = 499.5
    assert encoder.tokenizer.decode(example.ids) == (
        "<｜begin▁of▁sentence｜><|User|>: <image><image><image><image>\n"
        "Where is <|ref|>the cat<|/ref|>\n\n<|Assistant|>:"
        "<|ref|>the cat<|/ref|><|det|>[[167, 0, 500, 999]]<|/det|><｜end▁of▁sentence｜>"
    )
    learned = example.ids[example.learned].tolist()
    special = encoder.tokenizer.special_ids
    assert learned[0] == special[Special.ref]
    assert learned[-2:] == [special[Special.det_end], encoder.tokenizer.eos_id]
    assert len(learned) == 4 + len("the cat") + len("[[167, 0, 500, 999]]") + 1


def test_bad_boxes_are_listed_with_their_reason(encoder: Encoder, tmp_path: Path) -> None:
    answers = {
        "good": boxes([0, 0, 6, 4]),
        "outside": boxes([0, 0, 7, 4]),
        "turned": boxes([3, 0, 1, 4]),
        "elsewhere": boxes([0, 0, 1, 1], image=1),
    }
    members = [
        (f"{key}.{extension}", data)
        for key, answer in answers.items()
        for extension, data in record(key, answer).items()
    ]
    write_tar(tmp_path / "a.tar", members)

    def prepared(*, grace: int) -> PrepareReport:
        return prepare_sources(
            {"s": source_config(tmp_path, kind=RecordKind.conversation)},
            encoder_for=lambda config: encoder,
            workers=0,
            faults=FaultConfig(grace=grace),
        )

    with pytest.raises(FaultBudgetExceeded) as stopped:
        prepared(grace=2)
    said = str(stopped.value)
    assert (
        "s:a.tar:outside: bad_box: [0, 0, 7, 4] reaches out of image 0.png of 6 x 4 pixels" in said
    )
    assert "s:a.tar:turned: bad_box: [3, 0, 1, 4] is not left, top, right, bottom" in said
    assert "s:a.tar:elsewhere: bad_box: boxes in image 1, but the record has 1 images" in said
    (source,) = prepared(grace=3).sources
    assert source.excluded == {"bad_box": 3}
    assert source.totals["multimodal"]["samples"] == 1


def test_a_recipe_cannot_write_parts_that_are_not_understood() -> None:
    with pytest.raises(DataError, match=r"record 'k': .*has type 'box'"):
        conversation_record("k", messages=[("user", [{"type": "box"}])])
    with pytest.raises(DataError, match="1 <image> marks but 0 images"):
        conversation_record("k", messages=[("user", ASKED)])
