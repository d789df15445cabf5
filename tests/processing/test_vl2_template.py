"""DeepSeek-VL2's template and grounding tokens, against what the released processor does: it splits
the written question at ``<image>`` and lets the tokenizer make tokens of ``<|User|>`` and the
like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from vltrain.batch import (
    Boxes,
    Learn,
    Origin,
    RecordKind,
    Role,
    Sample,
    Special,
    StoredImage,
    Template,
    Turn,
)
from vltrain.errors import ConfigError, RecordFault
from vltrain.processing.conversation import Segment, render, render_prompt
from vltrain.processing.encode import Encoder, EncodeRules
from vltrain.processing.geometry import FixedGeometry, TiledGeometry
from vltrain.processing.grounding import BoxRounding
from vltrain.processing.tiling import TilingRule
from vltrain.processing.tokens import TextTokenizer
from vltrain.processing.train_tokenizer import train_bpe

VL2 = Template.deepseek_vl2
BOS, EOS, IMAGE = 0, 1, 3
IMAGE_TOKENS = 5
PICTURE = StoredImage(member="0.png", data=b"", width=100, height=200)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_bpe(
        ["The cat is red, and where is the dog? It is there."] * 9,
        vocab_size=300,
        directory=tmp_path_factory.mktemp("vl2"),
        image_token="<image>",
        template=VL2,
    )


@pytest.fixture(scope="module")
def vl2(directory: Path) -> TextTokenizer:
    return TextTokenizer.load(directory, image_token="<image>", image_token_id=IMAGE)


@pytest.fixture(scope="module")
def encoder(vl2: TextTokenizer) -> Encoder:
    return encoder_of(vl2)


def encoder_of(tokenizer: TextTokenizer, **changes) -> Encoder:
    fields = {"learn": Learn.answers, "template": VL2, "sequence_length": 500, "max_images": 4}
    rules = EncodeRules(**{**fields, **changes})
    return Encoder(tokenizer, FixedGeometry(tokens_per_image=IMAGE_TOKENS), rules)


def system(*content) -> Turn:
    return Turn(role=Role.system, content=content)


def user(*content) -> Turn:
    return Turn(role=Role.user, content=content)


def assistant(*content) -> Turn:
    return Turn(role=Role.assistant, content=content)


def sample(*turns: Turn, images: int = 0) -> Sample:
    return Sample(
        origin=Origin(source="s", shard="0.tar", key="k"),
        kind=RecordKind.conversation,
        turns=turns,
        images=(PICTURE,) * images,
    )


def asked(content) -> Segment:
    return Segment(content=content, learned=False, end=False)


def test_segments_and_which_are_learned() -> None:
    turns = [user("\n", 0, "\nWhat? "), assistant(" A cat\n"), user("And?"), assistant("A dog")]
    assert render(turns, system_prompt="", template=VL2) == (
        asked(Special.user),
        asked(": "),
        asked(0),
        asked("\nWhat?\n\n"),
        asked(Special.assistant),
        asked(":"),
        Segment(content="A cat", learned=True, end=True),
        asked(Special.user),
        asked(": And?\n\n"),
        asked(Special.assistant),
        asked(":"),
        Segment(content="A dog", learned=True, end=True),
    )


def test_a_samples_system_turn_stands_as_it_is_and_the_stages_has_a_blank_line() -> None:
    turns = [user("a"), assistant("b")]
    own = render([system(" Be kind. "), *turns], system_prompt="unused", template=VL2)
    assert own[:2] == (asked("Be kind."), asked(Special.user))
    default = render(turns, system_prompt="Be kind.", template=VL2)
    assert default[:2] == (asked("Be kind.\n\n"), asked(Special.user))
    assert render(turns, system_prompt="", template=VL2)[0] == asked(Special.user)


def test_grounding_in_question_and_answer() -> None:
    boxes = Boxes(image=0, boxes=((0, 0, 50, 100),))
    found = (Special.det, boxes, Special.det_end)
    turns = [user(0, Special.grounding, "Where?"), assistant("There: ", *found, " ")]
    assert render(turns, system_prompt="", template=VL2)[-4:] == (
        Segment(content="There: ", learned=True, end=False),
        Segment(content=Special.det, learned=True, end=False),
        Segment(content=boxes, learned=True, end=False),
        Segment(content=Special.det_end, learned=True, end=True),
    )
    with pytest.raises(RecordFault, match="a special token in the system turn"):
        render([system(Special.grounding), *turns], system_prompt="", template=VL2)


def released_ids(directory: Path, *pieces: str | int) -> list[int]:
    """As the released processor: text with its special tokens, and an int for as many
    placeholders."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = [BOS]
    for piece in pieces:
        if isinstance(piece, int):
            ids += [IMAGE] * piece
        else:
            ids += tokenizer.encode(piece, add_special_tokens=False)
    return ids


def test_ids_are_those_of_the_released_processor(encoder: Encoder, directory: Path) -> None:
    boxes = (Special.det, Boxes(image=0, boxes=((0, 20, 50, 200),)), Special.det_end)
    turns = [
        user(0, "\n", Special.ref, "the cat", Special.ref_end, "."),
        assistant(Special.ref, "the cat", Special.ref_end, *boxes),
        user("Is it red?"),
        assistant("It is."),
    ]
    example = encoder.encode(sample(*turns, images=1))
    question = "\n<|ref|>the cat<|/ref|>.\n\n<|Assistant|>:"
    # 50 / 100 * 999 = 499.5, 20 / 200 * 999 = 99.9
    answer = "<|ref|>the cat<|/ref|><|det|>[[0, 100, 500, 999]]<|/det|>"
    end = "<｜end▁of▁sentence｜>"
    assert example.ids.tolist() == released_ids(
        directory,
        "<|User|>: ",
        IMAGE_TOKENS,
        question,
        answer + end,
        "<|User|>: Is it red?\n\n<|Assistant|>:",
        "It is." + end,
    )
    learned = encoder.tokenizer.decode(example.ids[example.learned])
    assert learned == f"{answer}{end}It is.{end}"


def test_a_prompt_is_the_beginning_of_its_sample(encoder: Encoder) -> None:
    turns = (user(0, "What?"), assistant("A cat."), user("And?"), assistant("A dog."))
    whole = encoder.encode(sample(*turns, images=1))
    prompt = encoder.prompt_ids(turns[:-1], (PICTURE,))
    assert prompt.ids.tolist() == whole.ids[: len(prompt.ids)].tolist()
    assert encoder.tokenizer.decode(whole.ids[len(prompt.ids) : -1]) == "A dog."
    assert render_prompt(turns[:1], system_prompt="", template=VL2)[-1] == asked(":")


def test_several_images_and_none(encoder: Encoder) -> None:
    example = encoder.encode(sample(user(0, 1, " alike?"), assistant("No"), images=2))
    assert example.image_tokens.tolist() == [IMAGE_TOKENS] * 2
    assert (example.ids == IMAGE).sum() == 2 * IMAGE_TOKENS
    text = encoder.encode(sample(user("alike?"), assistant("No")))
    assert encoder.tokenizer.decode(text.ids) == (
        "<｜begin▁of▁sentence｜><|User|>: alike?\n\n<|Assistant|>:No<｜end▁of▁sentence｜>"
    )


@pytest.mark.parametrize("special", Special)
def test_words_of_a_token_in_a_content_are_words(encoder: Encoder, special: Special) -> None:
    typed = f"a{special.value}: b<image>"
    turns = (user(typed), assistant(typed))
    example = encoder.encode(sample(*turns))
    tokens = encoder.tokenizer.special_ids
    expected = [tokens[Special.user], tokens[Special.assistant]]
    found = example.ids[np.isin(example.ids, [IMAGE, *tokens.values()])]
    assert found.tolist() == expected
    learned = encoder.tokenizer.decode(example.ids[example.learned])
    assert learned == f"{typed}<｜end▁of▁sentence｜>"


def test_a_tokenizer_without_the_roles_is_refused(tokenizer: TextTokenizer) -> None:
    words = (
        r"stage.template=deepseek_vl2 writes <\|User\|> and <\|Assistant\|>, which the tokenizer "
        "does not have: set model.tokenizer"
    )
    with pytest.raises(ConfigError, match=words):
        encoder_of(tokenizer)


def test_grounding_needs_a_tokenizer_that_has_it(tokenizer: TextTokenizer) -> None:
    turns = (user(Special.grounding, "a"), assistant("b"))
    other = encoder_of(tokenizer, template=Template.deepseek)
    with pytest.raises(RecordFault, match=r"<\|grounding\|>, which the tokenizer does not") as it:
        other.encode(sample(*turns))
    assert it.value.reason == "no_special_token"


def test_a_bad_box_is_its_records_fault(encoder: Encoder) -> None:
    boxes = Boxes(image=0, boxes=((0, 0, 101, 10),))
    turns = (user(0, "a"), assistant(Special.det, boxes, Special.det_end))
    with pytest.raises(RecordFault, match=r"reaches out of image 0\.png of 100 x 200 pixels"):
        encoder.encode(sample(*turns, images=1))


def test_a_box_is_of_the_image_before_it_is_tiled(encoder: Encoder) -> None:
    tiled = TiledGeometry(
        tile_side=16, tokens_per_side=2, max_tiles=9, max_tiled_images=2, rule=TilingRule.effective
    )
    boxes = Boxes(image=0, boxes=((0, 20, 50, 200),))
    turns = (user(0, "a"), assistant(Special.det, boxes, Special.det_end))
    example = Encoder(encoder.tokenizer, tiled, encoder.rules).encode(sample(*turns, images=1))
    assert example.images[0].grid == (2, 4)  # 32 x 64 pixels, where the image has 100 x 200
    answer = encoder.tokenizer.decode(example.ids[example.learned])
    assert answer.startswith("<|det|>[[0, 100, 500, 999]]<|/det|>")


def test_rounding_is_part_of_the_sidecars_key_where_it_is_not_the_default(vl2) -> None:
    default, down = (
        encoder_of(vl2, **changes) for changes in ({}, {"box_rounding": BoxRounding.down})
    )
    assert default.digest != down.digest
    boxes = Boxes(image=0, boxes=((0, 20, 50, 200),))
    turn = assistant("It is ", Special.det, boxes, Special.det_end, ". ")
    assert default.written(turn, (PICTURE,)) == "It is <|det|>[[0, 100, 500, 999]]<|/det|>."
    assert down.written(turn, (PICTURE,)) == "It is <|det|>[[0, 99, 499, 999]]<|/det|>."


def test_the_tokenizers_chat_template_writes_the_same(encoder: Encoder, directory: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(directory)
    messages = [
        {"role": "user", "content": "Is it red?"},
        {"role": "assistant", "content": "It is."},
        {"role": "user", "content": "And the dog?"},
    ]
    turns = (user("Is it red?"), assistant("It is."), user("And the dog?"))
    written = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = theirs.encode(written, add_special_tokens=False)
    assert ids == encoder.prompt_ids(turns, ()).ids.tolist()


def test_specials_come_after_the_first_four(directory: Path, tmp_path: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(directory)
    assert theirs.convert_tokens_to_ids([s.value for s in Special]) == list(range(4, 11))
    with pytest.raises(ConfigError, match="below 267: 11 special tokens and 256 bytes"):
        train_bpe(["x"], vocab_size=266, directory=tmp_path, template=VL2)
