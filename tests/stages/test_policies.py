"""What each stage may be, as the papers say; what its policy refuses is in test_runconfig."""

from __future__ import annotations

import dataclasses

import pytest

from stages import POLICIES, policy_of, start_of
from vltrain.batch import Learn, RecordKind, Template
from vltrain.errors import ConfigError

TRAINS = {  # DeepSeek-VL 3.2: may, must
    1: ({"adaptor"}, {"adaptor"}),
    2: ({"adaptor", "language"}, {"adaptor", "language"}),
    3: ({"adaptor", "language", "siglip", "vit"}, {"adaptor", "language"}),
}
TRAINS_VL2 = {  # DeepSeek-VL2 4.1: all of it, always
    1: {"siglip", "adaptor"},
    2: {"siglip", "adaptor", "language"},
    3: {"siglip", "adaptor", "language"},
}
PREDECESSORS = {1: {0}, 2: {0, 1}, 3: {0, 2}}
RECORDS = {
    1: {RecordKind.caption},
    2: set(RecordKind),
    3: {RecordKind.conversation},
}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_policy(number: int) -> None:
    policy = policy_of(number)
    assert policy.number == number
    may, must = TRAINS[number]
    assert policy.may_train == {"deepseek_vl": may, "deepseek_vl2": TRAINS_VL2[number]}
    assert policy.must_train == {"deepseek_vl": must, "deepseek_vl2": TRAINS_VL2[number]}
    assert policy.predecessors == PREDECESSORS[number]
    assert policy.may_be_new == ({"adaptor"} if number == 1 else set())
    assert policy.records == RECORDS[number]
    assert policy.learns == {Learn.answers if number == 3 else Learn.all}
    others = set() if number == 3 else {Template.plain, Template.alignment}
    assert policy.templates == {
        "deepseek_vl": {Template.deepseek} | others,
        "deepseek_vl2": {Template.deepseek_vl2} | others,
    }


@pytest.mark.parametrize("policy", POLICIES.values(), ids=lambda p: p.name)
def test_policies_are_values(policy) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.number = 4
    for family, must in policy.must_train.items():
        assert must <= policy.may_train[family]
    assert "sam" not in policy.may_train["deepseek_vl"]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_names_agree_with_the_config(compose, number: int) -> None:
    config = compose(f"stage={number}", "+experiment=demo")
    assert config.stage.name == policy_of(number).name
    assert set(config.stage.trainable) == TRAINS[number][0] - {"vit"}  # the demo has none


@pytest.mark.parametrize(
    ("stage", "word", "said"),
    [
        (2, "data.mixture.language_share=0.0", "asks for language"),  # the ramp starts at 1
        (3, "data.mixture.language_share=0.1", "asks for language"),
    ],
)
def test_language_without_a_language_source(compose, stage: int, word: str, said: str) -> None:
    config = compose(f"stage={stage}", "+experiment=demo", word)
    for source in config.data.sources.values():
        source.modality = "multimodal"
    with pytest.raises(Exception, match=said):
        policy_of(stage).check(config)


def test_pictures_without_a_multimodal_source(compose) -> None:
    config = compose("stage=2", "+experiment=demo")
    for name in set(config.data.sources) - {"text"}:
        del config.data.sources[name]
    with pytest.raises(Exception, match="30% multimodal data and no source"):
        policy_of(2).check(config)


@pytest.mark.parametrize(
    ("number", "without", "predecessors", "may_be_new"),
    [
        (1, [], {0}, {"adaptor"}),
        (2, [], {0, 1}, set()),
        (3, [], {0, 2}, set()),
        # DeepSeek-VL Table 9: stages 2 and 3 alone; stages 1 and 3; and stage 3 by itself.
        (2, [1], {0}, {"adaptor"}),
        (3, [2], {0, 1}, set()),
        (3, [1, 2], {0}, {"adaptor"}),
    ],
)
def test_stages_left_out(number, without, predecessors, may_be_new) -> None:
    start = start_of(number, without=without)
    assert (start.predecessors, start.may_be_new) == (predecessors, may_be_new)


@pytest.mark.parametrize(
    ("number", "without", "said"),
    [
        (1, [2], r"stage 1 \(align\): stage.without=\[2\].*may leave out nothing"),
        (3, [1], "does not come straight after 1; it may leave out 2"),
        (3, [0], "does not come straight after 0; it may leave out 2"),
        (2, [2], "it may leave out 1"),
    ],
)
def test_a_stage_leaves_out_only_what_comes_before_it(number, without, said) -> None:
    with pytest.raises(ConfigError, match=said):
        start_of(number, without=without)
