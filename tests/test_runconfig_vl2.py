"""DeepSeek-VL2's recipes compose to the published numbers, and its policy guards what trains."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from stages import policy_of
from vltrain.assemble.datapath import work_cost
from vltrain.batch import Template
from vltrain.errors import ConfigError

CONF = Path(__file__).resolve().parents[1] / "conf"
SIZES = ("tiny", "small", "base")


def words(stage: int, size: str) -> list[str]:
    """A user's command, with folders for the mix that the family chooses."""
    names = OmegaConf.load(CONF / f"data/deepseek_vl2_stage{stage}.yaml").sources
    return [
        f"stage={stage}",
        f"model=deepseek_vl2_{size}",
        *(f"data.sources.{name}.path=somewhere/{name}" for name in names),
    ]


# DeepSeek-VL2 Table 2: lr, schedule, batch, tokens in billions, packing, penalty, correction.
TABLE_2 = {
    ("tiny", 1): (5.4e-4, "cosine", 256, 2.0, False, 0.001, 0.0),
    ("tiny", 2): (5.4e-4, "step", 2304, 798.5, True, 0.001, 0.0),
    ("tiny", 3): (3.0e-5, "constant", 64, 19.5, True, 0.001, 0.0),
    ("small", 1): (4.2e-4, "cosine", 256, 2.0, False, 0.001, 0.0),
    ("small", 2): (4.2e-4, "step", 2304, 808.9, True, 0.001, 0.0),
    ("small", 3): (1.4e-5, "constant", 64, 20.0, True, 0.001, 0.0),
    ("base", 1): (4.5e-4, "cosine", 256, 2.0, False, 0.0001, 0.0),
    ("base", 2): (4.5e-4, "step", 3360, 796.5, True, 0.0001, 0.001),
    ("base", 3): (2.0e-5, "constant", 64, 19.5, True, 0.0001, 0.0),
}


@pytest.mark.parametrize(("size", "stage"), TABLE_2)
def test_table_2(compose, size: str, stage: int) -> None:
    config = compose(*words(stage, size))
    policy_of(stage).check(config)
    optim, batch = config.optim, config.data.batch.sequences
    assert (
        optim.lr,
        optim.schedule.kind.value,
        batch,
        round(optim.steps * batch * 4096 / 1e9, 1),
        config.data.packing.enabled,
        config.model.router.penalty_weight,
        config.model.router.correction_step,
    ) == TABLE_2[size, stage]
    assert (optim.weight_decay, optim.clip_norm, optim.beta1, optim.beta2) == (0.1, 1.0, 0.9, 0.95)
    assert {part: own.lr_multiplier for part, own in optim.parts.items()} == {"siglip": 0.1}
    assert optim.moments.value == ("bf16" if size == "base" else "fp32")  # "BF16 Optimizer"
    assert config.data.packing.sequence_length == 4096
    assert not config.data.packing.image_tokens_on_top


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_the_step_schedule_divides_by_the_root_of_ten(compose, size: str) -> None:
    schedule = compose(*words(2, size)).optim.schedule
    assert schedule.milestones == [0.5, 0.75]
    assert schedule.factors == pytest.approx([10**-0.5, 0.1])


@pytest.mark.parametrize(("stage", "share"), [(1, 0.0), (2, 0.3), (3, 0.3)])
def test_shares_of_text(compose, stage: int, share: float) -> None:
    config = compose(*words(stage, "tiny"))
    assert config.data.mixture.language_share == share
    assert config.data.mixture.ramp.kind.value == "none"
    assert config.stage.system_prompt is None
    assert config.stage.template is Template.deepseek_vl2
    with pytest.raises(ConfigError, match="template=deepseek; expected for deepseek_vl2"):
        policy_of(stage).check(compose(*words(stage, "tiny"), "stage.template=deepseek"))


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_images_are_tiled_as_released(compose, size: str) -> None:
    model = compose(*words(1, size)).model
    assert model.pad_color == [127, 127, 127]
    assert (model.siglip_mean, model.siglip_std) == ([0.5] * 3, [0.5] * 3)
    tiling = model.tiling
    assert (tiling.max_tiles, tiling.max_tiled_images, tiling.rule.value) == (9, 2, "effective")


def test_an_image_costs_what_the_paper_says(compose) -> None:
    geometry = compose(*words(2, "tiny")).model.geometry
    assert geometry.most_tokens == 2101
    assert geometry.layout(1024, 768, images_in_sample=1).tokens == 1415
    assert geometry.layout(1024, 768, images_in_sample=3).tokens == 421


@pytest.mark.parametrize(
    ("stage", "word", "said"),
    [
        (1, "stage.trainable=[adaptor]", ["lacks", "siglip"]),
        (1, "stage.trainable=[siglip,adaptor,language]", ["language", "stay frozen"]),
        (2, "stage.trainable=[adaptor,language]", ["lacks", "siglip"]),
        (3, "stage.trainable=[adaptor,language]", ["lacks", "siglip"]),
    ],
)
def test_the_policy_guards_what_trains(compose, stage: int, word: str, said: list[str]) -> None:
    config = compose(*words(stage, "tiny"), word)
    with pytest.raises(ConfigError) as error:
        policy_of(stage).check(config)
    for piece in said:
        assert piece in str(error.value)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_ranks_are_balanced_by_tiles(compose, stage: int) -> None:
    """Forward and twice that backward through SigLIP, whose weights meet 729 patches of a square
    of 196 tokens; beside it, its attention and the adaptor are small."""
    cost = work_cost(compose(*words(stage, "tiny")))
    assert cost.image_token == pytest.approx(6 * 412_987_248 * 729 / 196, rel=0.25)
    assert cost.image_token > 2 * cost.token  # one that sees it, of 0.57 billion parameters


def test_a_sequence_must_hold_the_largest_image(compose) -> None:
    with pytest.raises(ConfigError, match="cannot hold one image of 2101 tokens"):
        compose(*words(2, "tiny"), "data.packing.sequence_length=2048")


# DeepSeek-VL2, section 3: categories (their shares are not published) and data sets.
SETS = {
    1: {"default": {"sharegpt4v"}},
    2: {
        "interleaved": {"wit", "wikihow", "obelics", "wanjuan", "in_house_interleaved"},
        "caption": {"captions"},
        "ocr": {"latex_ocr", "rendered_text", "in_house_ocr"},
        "qa": {
            *("general_qa", "pubtabnet", "fintabnet", "docmatix", "websight", "python_plots"),
            "visual_prompt_qa",
        },
        "grounding": {"grounding"},
        "grounded_conversation": {"grounded_conversation"},
        "text": {"text"},
    },
    3: {
        "default": {
            *("general_qa", "ocr_document", "table_chart", "reasoning_mathematics"),
            *("textbook_academic", "web_to_code", "grounding", "grounded_conversation", "text_sft"),
        },
    },
}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_published_data_sets(compose, stage: int) -> None:
    config = compose(*words(stage, "small"))
    policy_of(stage).check(config)
    found: dict[str, set[str]] = {}
    for name, source in config.data.sources.items():
        found.setdefault(source.category, set()).add(name)
    assert found == SETS[stage]
    assert config.data.mixture.language_share == (0.0 if stage == 1 else 0.3)
    assert len(set(config.data.mixture.category_weights.values())) <= 1
    text = {n for n, s in config.data.sources.items() if s.modality.value == "language"}
    assert text == {1: set(), 2: {"text"}, 3: {"text_sft"}}[stage]


@pytest.mark.parametrize(
    "said",
    [
        ("data=demo_stage2",),
        ("+experiment=demo",),
        ("+experiment=demo_vl2", "model=deepseek_vl2_base"),
    ],
)
def test_a_mix_that_is_named_wins_over_the_familys(compose, said: tuple[str, ...]) -> None:
    room = "data.packing.sequence_length=4096"
    config = compose("stage=2", "model=deepseek_vl2_tiny", *said, room)
    assert config.data.sources["text"].path == "data/demo/stdlib_text/train"
    assert "wit" not in config.data.sources
