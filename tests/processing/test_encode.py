from __future__ import annotations

import dataclasses
import pickle
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from vltrain.batch import Learn, Origin, RecordKind, Role, Sample, StoredImage, Template, Turn
from vltrain.errors import ConfigError, DataError, RecordFault
from vltrain.processing.encode import Encoder, EncodeRules, PieceSize
from vltrain.processing.geometry import FixedGeometry
from vltrain.processing.tokens import TextTokenizer
from vltrain.processing.train_tokenizer import BOS_TOKEN, EOS_TOKEN, IMAGE_TOKEN

ORIGIN = Origin(source="s", shard="0.tar", key="k")
RULES = EncodeRules(learn=Learn.answers, sequence_length=200, max_images=4)
IMAGE_TOKENS = 9


def stored(number: int = 0) -> StoredImage:
    return StoredImage(member=f"{number}.png", data=b"", width=10 + number, height=20)


def make(kind: RecordKind, *turns: Turn, images: int = 0) -> Sample:
    pictures = tuple(stored(n) for n in range(images))
    return Sample(origin=ORIGIN, kind=kind, turns=turns, images=pictures)


def conversation(*texts, images: int = 0) -> Sample:
    """User and assistant in turn; a text may be a tuple with images."""
    roles = (Role.user, Role.assistant)
    turns = [
        Turn(role=roles[n % 2], content=text if isinstance(text, tuple) else (text,))
        for n, text in enumerate(texts)
    ]
    return make(RecordKind.conversation, *turns, images=images)


def document(*content, kind=RecordKind.text, images: int = 0) -> Sample:
    return make(kind, Turn(role=Role.document, content=content), images=images)


@pytest.fixture(scope="module")
def encoder(tokenizer) -> Encoder:
    return Encoder(tokenizer, FixedGeometry(tokens_per_image=IMAGE_TOKENS), RULES)


def with_rules(encoder: Encoder, **changes) -> Encoder:
    rules = dataclasses.replace(encoder.rules, **changes)
    return Encoder(encoder.tokenizer, encoder.geometry, rules)


def learned_text(encoder: Encoder, example) -> str:
    return encoder.tokenizer.decode(example.ids[example.learned])


def test_unmasked_labels_are_exactly_the_answers_and_end_tokens(encoder):
    sample = conversation(
        (0, "\nWhat colour is it?"), " It is red. ", "And its shape?", "A circle", images=1
    )
    example = encoder.encode(sample)
    assert learned_text(encoder, example) == f" It is red.{EOS_TOKEN} A circle{EOS_TOKEN}"
    assert encoder.tokenizer.decode(example.ids) == (
        f"{BOS_TOKEN}User: {IMAGE_TOKEN * IMAGE_TOKENS}\nWhat colour is it?\n\nAssistant:"
        f" It is red.{EOS_TOKEN}User: And its shape?\n\nAssistant: A circle{EOS_TOKEN}"
    )


def test_learning_everything_leaves_out_images_and_the_first_token(encoder):
    sample = conversation((0, "What?"), "Red.", images=1)
    example = encoder.encode(sample, learn=Learn.all)
    assert learned_text(encoder, example) == f"User: What?\n\nAssistant: Red.{EOS_TOKEN}"
    assert not example.learned[0]
    assert not example.learned[example.ids == encoder.tokenizer.image_id].any()
    assert example.num_supervised == len(example.ids) - 1 - IMAGE_TOKENS


def test_documents_are_learned_whichever_rule_holds(encoder):
    sample = document(0, "A red circle.", kind=RecordKind.caption, images=1)
    for learn in Learn:
        assert learned_text(encoder, encoder.encode(sample, learn=learn)) == (
            f"A red circle.{EOS_TOKEN}"
        )


def test_dtypes_and_image_spans_in_reading_order(encoder):
    sample = document("a", 1, "b", 0, kind=RecordKind.interleaved, images=2)
    example = encoder.encode(sample)
    assert example.ids.dtype == np.int32
    assert example.learned.dtype == bool
    assert example.image_starts.dtype == example.image_tokens.dtype == np.int32
    assert example.image_starts.tolist() == [2, 2 + IMAGE_TOKENS + 1]
    assert example.image_tokens.tolist() == [IMAGE_TOKENS] * 2
    assert [image.member for image in example.images] == ["1.png", "0.png"]
    for start in example.image_starts:
        assert (example.ids[start : start + IMAGE_TOKENS] == encoder.tokenizer.image_id).all()


def test_placeholder_words_typed_by_a_user_are_text(encoder):
    sample = conversation(f"What does {IMAGE_TOKEN} mean? {EOS_TOKEN}", f"{IMAGE_TOKEN}!")
    example = encoder.encode(sample)
    assert encoder.tokenizer.image_id not in example.ids
    assert (example.ids == encoder.tokenizer.eos_id).sum() == 1
    assert len(example.images) == 0


def test_a_prompt_is_the_beginning_of_the_training_ids(encoder):
    sample = conversation("Hi", "Hello.", (0, "What?"), "Red.", images=1)
    prompt = encoder.prompt_ids(sample.turns[:-1], sample.images)
    whole = encoder.encode(sample)
    np.testing.assert_array_equal(prompt.ids, whole.ids[: len(prompt.ids)])
    answer = whole.ids[len(prompt.ids) :]
    assert encoder.tokenizer.decode(answer) == f" Red.{EOS_TOKEN}"
    assert not prompt.learned.any()
    assert prompt.images == sample.images


def test_a_prompt_with_a_missing_image(encoder):
    with pytest.raises(RecordFault, match="places image 0 of 0"):
        encoder.prompt_ids([Turn(role=Role.user, content=(0, "What?"))], [])


def test_measure_is_what_piece_gives(encoder):
    long = with_rules(encoder, sequence_length=40)
    text = "The quick fox. It jumps over the dog.\n\nWhat is in the picture? A dog.\n" * 4
    sample = document("A", 0, text, 1, text, kind=RecordKind.interleaved, images=2)
    sizes = long.measure(sample)
    assert len(sizes) > 3
    whole = long.encode(sample)
    assert sum(size.tokens for size in sizes) == len(whole.ids)
    assert sum(size.images for size in sizes) == 2
    pieces = [long.piece(sample, start=s.start, tokens=s.tokens) for s in sizes]
    np.testing.assert_array_equal(np.concatenate([p.ids for p in pieces]), whole.ids)
    for size, piece in zip(sizes, pieces, strict=True):
        assert size.tokens <= 40
        assert size == PieceSize(
            start=size.start,
            tokens=len(piece.ids),
            supervised=piece.num_supervised,
            image_tokens=int(piece.image_tokens.sum()),
            images=len(piece.images),
        )
        mask = piece.ids == long.tokenizer.image_id
        assert mask.sum() == size.image_tokens == size.images * IMAGE_TOKENS
        for start in piece.image_starts:
            assert mask[start : start + IMAGE_TOKENS].all()


def test_cuts_prefer_paragraphs_then_lines_then_sentences(encoder):
    def pieces(text: str, limit: int) -> list[str]:
        short = with_rules(encoder, sequence_length=limit)
        sample = document(text)
        return [
            short.tokenizer.decode(short.piece(sample, start=s.start, tokens=s.tokens).ids)
            for s in short.measure(sample)
        ]

    words = "fox " * 6
    count = len(encoder.tokenizer.encode(words))
    limit = 2 * count + 4
    for mark in ("\n\n", "\n", "."):
        first, *_ = pieces(words + words[:-1] + mark + words * 2, limit)
        assert first == f"{BOS_TOKEN}{words}{words[:-1]}{mark}"
    first, *_ = pieces(f"{words}{words[:-1]}\n\nfox.\nfox. {words}", limit + 8)
    assert first.endswith("fox\n\n")


def test_a_cut_never_lies_inside_a_character(encoder):
    text = "é红🦊" * 60
    for limit in (21, 22, 23, 24):
        short = with_rules(encoder, sequence_length=limit)
        sample = document(text)
        for size in short.measure(sample):
            ids = short.piece(sample, start=size.start, tokens=size.tokens).ids
            assert "\ufffd" not in short.tokenizer.decode(ids)


@pytest.mark.parametrize("lead", range(1, 30))
def test_no_cut_inside_an_image_span_wherever_it_lies(encoder, lead):
    short = with_rules(encoder, sequence_length=20)
    sample = document("\n" * lead, 0, "\n" * 30, kind=RecordKind.interleaved, images=1)
    sample = dataclasses.replace(
        sample, turns=(Turn(role=Role.document, content=("\n" * lead, 0, "\n" * 30 + "a")),)
    )
    sizes = short.measure(sample)
    assert [s.image_tokens for s in sizes if s.images] == [IMAGE_TOKENS]
    assert max(s.tokens for s in sizes) <= 20


@pytest.mark.parametrize("kind", [RecordKind.caption, RecordKind.conversation])
def test_captions_and_conversations_are_not_cut(encoder, kind):
    text = "fox " * 300
    if kind is RecordKind.caption:
        sample = document(0, text, kind=kind, images=1)
    else:
        sample = conversation("Say fox.", text)
    with pytest.raises(RecordFault, match="the limit is 200") as fault:
        encoder.measure(sample)
    assert fault.value.reason == "too_long"


def test_length_limits_at_the_edge(encoder):
    sample = document(0, "A dog.", kind=RecordKind.caption, images=1)
    n = len(encoder.encode(sample).ids)
    assert with_rules(encoder, sequence_length=n).measure(sample)[0].tokens == n
    with pytest.raises(RecordFault, match=f"{n} tokens; the limit is {n - 1}"):
        with_rules(encoder, sequence_length=n - 1).measure(sample)
    text_only = n - IMAGE_TOKENS
    on_top = {"image_tokens_on_top": True}
    top = with_rules(encoder, sequence_length=text_only, **on_top)
    assert top.measure(sample)[0].tokens == n
    with pytest.raises(RecordFault, match=f"{text_only} text tokens; the limit"):
        with_rules(encoder, sequence_length=text_only - 1, **on_top).measure(sample)


def test_an_image_longer_than_the_limit(encoder):
    sample = document("fox " * 9, 0, "fox", kind=RecordKind.interleaved, images=1)
    with pytest.raises(RecordFault, match="nowhere to cut"):
        with_rules(encoder, sequence_length=IMAGE_TOKENS - 1).measure(sample)


def test_too_many_images_of_a_conversation(encoder):
    sample = conversation((0, 1, 2, 3, 4, "\nHow many?"), "Five.", images=5)
    with pytest.raises(RecordFault, match=r"5 images; .*max_images is 4") as fault:
        encoder.measure(sample)
    assert fault.value.reason == "too_many_images"


def test_a_document_of_many_images_is_cut_not_dropped(encoder):
    turn = ("begin\n", 0, "a\n", 1, "b\n", 2, "c\n", 3, "d\n", 4, "e\n", 5, "end")
    sample = document(*turn, kind=RecordKind.interleaved, images=6)
    sizes = encoder.measure(sample)
    assert [s.images for s in sizes] == [4, 2]
    assert [s.image_tokens for s in sizes] == [4 * IMAGE_TOKENS, 2 * IMAGE_TOKENS]
    pieces = [encoder.piece(sample, start=s.start, tokens=s.tokens) for s in sizes]
    assert np.concatenate([p.ids for p in pieces]).tolist() == encoder.encode(sample).ids.tolist()
    assert [[i.member for i in p.images] for p in pieces] == [
        ["0.png", "1.png", "2.png", "3.png"],
        ["4.png", "5.png"],
    ]


@pytest.mark.parametrize("content", [("a",), ("a", 0, 0), ("a", 1)])
def test_images_and_places_must_agree(encoder, content):
    with pytest.raises(RecordFault, match="the record has 1 images") as fault:
        encoder.encode(document(*content, kind=RecordKind.interleaved, images=1))
    assert fault.value.reason == "image_mismatch"


def test_a_sample_that_became_shorter(encoder):
    with pytest.raises(DataError, match=r"s:0\.tar:k: tokens 0 to 99 were planned.*prepare"):
        encoder.piece(document("a fox"), start=0, tokens=99)


def test_digest_covers_how_the_template_is_written(encoder, monkeypatch):
    before = encoder.digest
    monkeypatch.setattr("vltrain.processing.encode.TEMPLATE_VERSION", "another")
    assert encoder.digest != before


def test_digest_covers_tokenizer_geometry_and_rules(encoder):
    same = Encoder(encoder.tokenizer, FixedGeometry(tokens_per_image=IMAGE_TOKENS), RULES)
    assert same.digest == encoder.digest
    others = [
        Encoder(encoder.tokenizer, FixedGeometry(tokens_per_image=4), RULES),
        with_rules(encoder, learn=Learn.all),
        with_rules(encoder, system_prompt="x"),
        with_rules(encoder, sequence_length=201),
        with_rules(encoder, image_tokens_on_top=True),
        with_rules(encoder, max_images=5),
    ]
    assert len({encoder.digest, *[other.digest for other in others]}) == 7


def test_sidecars_of_before_there_were_boxes_are_still_theirs():
    tokenizer = SimpleNamespace(digest="t", special_ids={})
    one = Encoder(cast(TextTokenizer, tokenizer), FixedGeometry(tokens_per_image=9), RULES)
    assert one.digest == "1cb63606efed03fc"


def test_an_encoder_can_be_sent_to_a_worker(encoder):
    copy = pickle.loads(pickle.dumps(encoder))  # noqa: S301
    sample = conversation("What?", "Red.")
    np.testing.assert_array_equal(copy.encode(sample).ids, encoder.encode(sample).ids)
    assert copy.digest == encoder.digest


def test_a_template_is_part_of_the_sidecars_key(encoder):
    assert with_rules(encoder, template=Template.alignment).digest != encoder.digest


def test_alignment_learns_the_caption_and_its_end(encoder):
    sample = document(0, "A red circle.", kind=RecordKind.caption, images=1)
    example = with_rules(encoder, template=Template.alignment).encode(sample)
    assert encoder.tokenizer.decode(example.ids) == (
        f"{BOS_TOKEN}{IMAGE_TOKEN * IMAGE_TOKENS}\nA red circle.{EOS_TOKEN}"
    )
    assert learned_text(encoder, example) == f"A red circle.{EOS_TOKEN}"
    question = conversation((0, "\nDescribe it."), "A red circle.", images=1)
    aligned = with_rules(encoder, template=Template.alignment).encode(question)
    np.testing.assert_array_equal(aligned.ids, example.ids)


def test_rules_are_checked():
    with pytest.raises(ConfigError, match="sequence_length is 1"):
        dataclasses.replace(RULES, sequence_length=1)


def given(*ids: int) -> Sample:
    return Sample(origin=ORIGIN, kind=RecordKind.text, turns=(), images=(), token_ids=ids)


def test_text_that_came_as_ids_is_taken_as_it_is(encoder) -> None:
    tokenizer = encoder.tokenizer
    inner = tokenizer.encode("a dog")
    expected = [tokenizer.bos_id, *inner, tokenizer.eos_id]
    for ids in (inner, expected, expected[1:], expected[:-1]):
        example = encoder.encode(given(*ids))
        assert example.ids.tolist() == expected
        assert example.learned.tolist() == [False] + [True] * (len(expected) - 1)
    long = encoder.measure(given(*[inner[0]] * 500))
    assert sum(piece.tokens for piece in long) == 502
    assert len(long) > 1


def test_ids_of_another_vocabulary_are_a_fault(encoder) -> None:
    tokenizer = encoder.tokenizer
    for ids in ([tokenizer.vocab_size], [tokenizer.image_id], [tokenizer.bos_id]):
        with pytest.raises(RecordFault, match="expected ids of text") as caught:
            encoder.encode(given(*ids))
        assert caught.value.reason == "bad_tokens"
