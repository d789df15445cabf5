"""Every YAML composes and passes its stage; wrong words are refused with what to do."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import OmegaConf

from stages import POLICIES, policy_of
from vltrain.batch import Learn
from vltrain.errors import ConfigError
from vltrain.models.config import AdaptorKind
from vltrain.optim.config import ScheduleKind
from vltrain.runconfig import clean_arguments, from_file, to_yaml

CONF = Path(__file__).resolve().parents[1] / "conf"
PUBLISHED = ("deepseek_vl_1.3b", "deepseek_vl_1.3b_hybrid", "deepseek_vl_7b")


DEMO = ("stage=2", "+experiment=demo")


def with_paths(stage: int) -> list[str]:
    """Where a user's own shards would be: the published mixes name data sets, not folders."""
    names = OmegaConf.load(CONF / f"data/deepseek_vl_stage{stage}.yaml").sources
    return [f"data.sources.{name}.path=somewhere/{name}" for name in names]


@pytest.mark.parametrize("model", PUBLISHED)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_published_recipes_compose_and_pass(compose, model: str, stage: int) -> None:
    config = compose(f"stage={stage}", f"model={model}", *with_paths(stage))
    policy_of(stage).check(config)
    assert config.stage.number == stage
    assert config.model.name == model
    assert config.optim.beta1 == 0.9
    assert config.optim.beta2 == 0.95
    assert config.optim.weight_decay == 0.0
    assert config.optim.clip_norm == 1.0
    assert config.data.loader.workers > 0  # decoding in the training process would hold it up


def test_the_demo_decodes_in_the_training_process(compose) -> None:
    assert compose("stage=2", "+experiment=demo").data.loader.workers == 0  # two cores


@pytest.mark.parametrize(("stage", "unit"), [(1, "samples"), (2, "tokens"), (3, "samples")])
def test_published_shares_are_held_in_their_unit(compose, stage: int, unit: str) -> None:
    assert compose(f"stage={stage}", *with_paths(stage)).data.mixture.unit.value == unit


# DeepSeek-VL Table 4, by hand: lr, schedule, warm-up, steps, batch, sequence length, packing.
TABLE_4 = {
    ("deepseek_vl_1.3b", 1): (1e-3, "cosine", 128, 15000, 256, 512, False),
    ("deepseek_vl_1.3b", 2): (3e-5, "step", 2000, 96000, 1024, 4096, True),
    ("deepseek_vl_1.3b", 3): (2e-5, "cosine", 256, 10000, 256, 4096, False),
    ("deepseek_vl_7b", 1): (1e-3, "cosine", 128, 15000, 256, 512, False),
    ("deepseek_vl_7b", 2): (4.2e-5, "step", 2000, 42000, 2304, 4096, True),
    ("deepseek_vl_7b", 3): (2e-5, "cosine", 256, 10000, 256, 4096, False),
}


@pytest.mark.parametrize(("model", "stage"), TABLE_4)
def test_table_4(compose, model: str, stage: int) -> None:
    config = compose(f"stage={stage}", f"model={model}", *with_paths(stage))
    assert (
        config.optim.lr,
        config.optim.schedule.kind.value,
        config.optim.schedule.warmup_steps,
        config.optim.steps,
        config.data.batch.sequences,
        config.data.packing.sequence_length,
        config.data.packing.enabled,
    ) == TABLE_4[model, stage]


def test_what_differs_between_the_stages(compose) -> None:
    one, two, three = (compose(f"stage={n}", *with_paths(n)) for n in (1, 2, 3))
    assert one.stage.trainable == ["adaptor"]
    assert one.data.packing.image_tokens_on_top
    assert two.stage.trainable == ["adaptor", "language"]
    assert two.data.mixture.language_share == 0.7
    assert two.data.mixture.grouping
    assert two.data.mixture.ramp.start_share == 1.0
    assert two.optim.schedule.kind is ScheduleKind.step
    assert two.optim.schedule.milestones == [0.8, 0.9]
    assert three.stage.trainable == ["adaptor", "language", "siglip"]
    assert three.stage.learn is Learn.answers
    assert three.data.mixture.language_share == 0.479


@pytest.mark.parametrize("demo", ["demo", "demo_vl2"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_demos_compose(compose, stage: int, demo: str) -> None:
    config = compose(f"stage={stage}", f"+experiment={demo}")
    policy_of(stage).check(config)
    assert config.model.name == demo
    assert config.run.root == f"runs/{demo}"
    assert config.data.held_out


def test_the_demo_that_points(compose) -> None:
    config = compose("stage=3", "+experiment=demo_vl2_boxes")
    policy_of(3).check(config)
    assert config.model.name == "demo_vl2"
    assert config.init_from == "runs/demo_vl2/stage2"
    assert config.run.name == "stage3_boxes"
    assert {"easy_vqa_boxes", "easy_vqa_what", "text_sft"} <= set(config.data.sources)
    assert {"easy_vqa_boxes", "easy_vqa_what", "text"} <= set(config.data.held_out)
    plain = compose("stage=3", "+experiment=demo_vl2")
    assert "easy_vqa_boxes" not in {**plain.data.sources, **plain.data.held_out}


def yaml_options(group: str) -> list[str]:
    """Of the project, where that is a clone: files of a user's own may lie beside them."""
    listed = subprocess.run(
        ["git", "ls-files", "--", group], cwd=CONF, capture_output=True, text=True, check=False
    )
    own = {CONF / line for line in listed.stdout.splitlines()}
    return sorted(p.stem for p in (CONF / group).glob("*.yaml") if p in own or not own)


@pytest.mark.parametrize("engine", yaml_options("engine"))
def test_every_engine_composes(compose, engine: str) -> None:
    config = compose("stage=2", "+experiment=demo", f"engine={engine}").engine
    zero_stage = 1 if engine == "cpu" else int(engine.removeprefix("zero")[0])
    assert config.zero_stage == zero_stage
    offload = (config.offload_optimizer.value, config.offload_params.value)
    wanted = {"zero2_offload": ("cpu", "none"), "zero3_offload": ("cpu", "cpu")}
    assert offload == wanted.get(engine, ("none", "none"))


@pytest.mark.parametrize("model", yaml_options("model"))
def test_every_model_composes(compose, model: str) -> None:
    # Room for one image of any of them.
    length = 4096 if model.startswith("deepseek_vl2") else 1024
    room = f"data.packing.sequence_length={length}"
    config = compose("stage=2", "+experiment=demo", f"model={model}", room)
    assert config.model.name == model


def test_every_optim_and_data_file_is_used_by_some_composition() -> None:
    tiled = [f"deepseek_vl2_{size}" for size in ("tiny", "small", "base")]
    demos = ("demo", "demo_vl2")
    optim = {f"{m}_stage{n}" for m in (*PUBLISHED, *tiled, *demos) for n in (1, 2, 3)}
    assert set(yaml_options("optim")) == optim
    data = {f"{m}_stage{n}" for m in ("deepseek_vl", "demo") for n in (1, 2, 3)}
    ablations = {f"deepseek_vl_stage2_{r}" for r in ("100_0", "75_25", "60_40", "25_75", "10_90")}
    warm = {"demo_warm_language", "demo_warm_towers"}
    vl2 = {f"deepseek_vl2_stage{n}" for n in (1, 2, 3)}  # composed in test_runconfig_vl2
    assert set(yaml_options("data")) == data | ablations | warm | vl2


SOMEWHERE = with_paths(1)


@pytest.mark.parametrize(
    ("words", "towers", "kind", "side"),
    [
        # DeepSeek-VL Fig. 10 and Table 10, as a user writes them
        (("model/encoder=siglip",), ("siglip",), "mlp", 384),
        (("model/encoder=sam",), ("sam",), "mlp", 1024),
        (("model/encoder=clip",), ("vit",), "mlp", 336),
        (("model/encoder=siglip_dinov2",), ("vit", "siglip"), "hybrid_split", 384),
        (("model/encoder=siglip_sam",), ("sam", "siglip"), "hybrid_split", 1024),
        *(
            ((f"model/adaptor={kind}",), ("sam", "siglip"), kind, 1024)
            for kind in ("hybrid_split", "shared", "separate", "pool_width", "pool_height")
        ),
        (("model/encoder=clip", "model/adaptor=mlp"), ("vit",), "mlp", 336),
    ],
)
@pytest.mark.parametrize("model", ["deepseek_vl_7b", "deepseek_vl_1.3b"])
def test_the_papers_choices_compose(compose, model, words, towers, kind, side) -> None:
    if model == "deepseek_vl_1.3b" and "encoder" not in words[0]:
        words = ("model/encoder=siglip_sam", *words)
    config = compose("stage=1", f"model={model}", *words, *SOMEWHERE)
    policy_of(1).check(config)
    assert (config.model.towers, config.model.adaptor.kind.value) == (towers, kind)
    assert (config.model.tokens_per_image, config.model.image_side) == (576, side)
    assert config.optim.steps == 15000  # of the model, whatever its towers


def test_every_choice_is_tried() -> None:
    encoders = {"siglip", "sam", "clip", "siglip_dinov2", "siglip_sam"}
    assert set(yaml_options("model/encoder")) == encoders | {"vit", "siglip_vit"}  # by path
    kinds = {kind.value for kind in AdaptorKind} - {"tiles"}  # DeepSeek-VL2's, not a choice
    assert set(yaml_options("model/adaptor")) == kinds


@pytest.mark.parametrize("encoder", ["vit", "siglip_vit"])
def test_a_tower_by_path(compose, tmp_path, encoder) -> None:
    with pytest.raises(ConfigError, match=r"name a published directory with model\.vit\.path=DIR"):
        compose("stage=1", f"model/encoder={encoder}", *SOMEWHERE)
    tower = {"model_type": "dinov2", "image_size": 56, "patch_size": 14, "hidden_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(tower))
    processor = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    view = 336 if encoder == "siglip_vit" else 56  # SigLIP has 24 x 24 patches
    config = compose(
        "stage=1",
        f"model/encoder={encoder}",
        f"model.vit.path={tmp_path}",
        f"model.vit.image_size={view}",
        *SOMEWHERE,
    )
    assert config.model.vit.std == [0.25] * 3
    assert config.model.tokens_per_image == (view // 14) ** 2
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    (tmp_path / "config.json").unlink()  # the run has written down what it said
    again = from_file(tmp_path / "config.yaml")
    assert again.model.vit == config.model.vit
    assert again.model.weights.vit == str(tmp_path)


def test_stage_3_trains_what_stands_in_siglips_place(compose) -> None:
    words = ("stage=3", "model/encoder=clip", *with_paths(3))
    with pytest.raises(ConfigError, match=r"'siglip'; .* are vit, adaptor, language. Set stage.tr"):
        compose(*words)
    config = compose(*words, "stage.trainable=[adaptor,language,vit]")
    policy_of(3).check(config)


@pytest.mark.parametrize(("stored", "how"), [(True, "full"), (False, "none")])
def test_runs_of_before_recomputation_by_part_are_read(compose, tmp_path, stored, how) -> None:
    text = to_yaml(compose(*DEMO))
    block = re.search(r"  activation_checkpointing:\n(    .*\n)+", text)
    assert block is not None
    old = text.replace(block.group(), f"  activation_checkpointing: {str(stored).lower()}\n")
    (tmp_path / "config.yaml").write_text(old)
    read = from_file(tmp_path / "config.yaml").model.activation_checkpointing
    assert (read.language.value, read.siglip.value) == (how, "none")


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        (["--local_rank=1", "stage=2"], ["stage='2'"]),
        (["--local_rank", "1", "stage=2"], ["stage='2'"]),
        (["--local-rank=0", "optim.lr=1e-3"], ["optim.lr=1e-3"]),
        (["-m", "stage=12", "optim.lr=1,2"], ["-m", "stage='12'", "optim.lr=1,2"]),
        (["stage=align"], ["stage=align"]),
        (["run.name=stage=2"], ["run.name='stage=2'"]),
        (["init_from=runs/s/0,optim.lr=0.1"], ["init_from='runs/s/0,optim.lr=0.1'"]),  # of a sweep
        (["optim.lr=range(start=1,stop=3)"], ["optim.lr=range(start=1,stop=3)"]),
        (["optim.lr=1,2", "init_from='a=b'"], ["optim.lr=1,2", "init_from='a=b'"]),
        (["resume=auto", "resume.accept=[recipe]"], ["resume.mode=auto", "resume.accept=[recipe]"]),
    ],
)
def test_clean_arguments(given: list[str], cleaned: list[str]) -> None:
    assert clean_arguments(given) == cleaned


REFUSED = [
    # words, what the message must hold
    (("stage=2",), ["data.sources", "path", "not set", "prepare.py"]),
    (
        ("stage=1",),
        [
            "data.sources.NAME.path is not set for 2 sources "
            "(document_ocr, sharegpt4v_captions): this mix",
            "set data.sources.NAME.path=FOLDER",
        ],
    ),
    (("stage=2", "model=deepseek_vl2_tiny"), ["(captions, docmatix, ", " wikihow, wit)"]),
    (
        ("stage=1", "data.sources.document_ocr.path=x"),
        [
            "data.sources.sharegpt4v_captions.path is not set: this mix",
            "set data.sources.sharegpt4v_captions.path=FOLDER",
        ],
    ),
    ((*DEMO, "data.batch.sequences=???", "optim.lr=???"), ["sequences=VALUE optim.lr=VALUE"]),
    ((*DEMO, "data.sources.text.kind=???"), ["data.sources.text.kind is not set (???)"]),
    ((*DEMO, "data.mixture.language_share=1.5"), ["language_share=1.5", "between 0 and 1"]),
    ((*DEMO, "stage.trainable=[adaptor,languag]"), ["'languag'", "sam, siglip, adaptor, language"]),
    ((*DEMO, "optim.steps=0"), ["optim.steps=0", "at least 1"]),
    ((*DEMO, "optim.lr=-1"), ["optim.lr=-1", "above 0"]),
    ((*DEMO, "metrics.peak_tflops=0"), ["metrics.peak_tflops=0", "above 0, or null"]),
    ((*DEMO, "optim.lr=nan"), ["optim.lr=nan: expected a finite number"]),
    ((*DEMO, "data.sources.emoji.weight=inf"), ["emoji.weight=inf: expected a finite number"]),
    (
        (*DEMO, "+data.mixture.langage_share=0.8"),
        [
            "data.mixture.langage_share is no key of this config",
            "did you mean data.mixture.language_share? data.mixture has: ",
        ],
    ),
    ((*DEMO, "+data.sources.emoji.color=1"), ["color is no key of this config.", "emoji has: "]),
    ((*DEMO, "+learning=1"), ["learning is no key of this config.", "the config has: run, stage"]),
    ((*DEMO, "optim.beta1=2"), ["optim.beta1=2", "below 1"]),
    ((*DEMO, "optim.beta2=1"), ["optim.beta2=1", "below 1"]),
    (
        (*DEMO, "optim.moments=bf16", "optim.beta2=0.999"),
        ["optim.moments=bf16", "optim.beta2=0.999", "optim.moments=fp32"],
    ),
    ((*DEMO, "optim.schedule.final_fraction=-1"), ["final_fraction=-1", "between 0 and 1"]),
    ((*DEMO, "evaluate.choices=1"), ["evaluate.choices=1", "at least 2"]),
    ((*DEMO, "evaluate.iou_threshold=0"), ["evaluate.iou_threshold=0", "above 0 and at most 1"]),
    ((*DEMO, "evaluate.iou_threshold=50"), ["evaluate.iou_threshold=50", "above 0 and at most 1"]),
    *(
        ((*DEMO, f"{key}=0"), [f"{key}=0: must be at least 1"])
        for key in (
            "evaluate.choice_samples",
            "evaluate.batch_records",
            "model.loss_chunk_tokens",
            "model.encode_images_at_once",
            "engine.timeout_seconds",
        )
    ),
    ((*DEMO, "engine.zero_stage=4"), ["zero_stage=4", "0, 1, 2 or 3"]),
    ((*DEMO, "engine.offload_params=cpu"), ["zero_stage=3"]),
    (
        (*DEMO, "+engine.extra.expert_parallel={enabled: true, autoep_size: 2}"),
        ["engine.extra.expert_parallel", "docs/model.md"],
    ),
    ((*DEMO, "data.packing.sequence_length=16"), ["sequence_length=16", "16 tokens"]),
    ((*DEMO, "data.packing.sequence_length=100000"), ["max_positions"]),
    ((*DEMO, "data.packing.image_tokens_on_top=true"), ["one budget"]),
    ((*DEMO, "optim.schedule.warmup_steps=100000"), ["warmup_steps=100000"]),
    (
        (*DEMO, "optim.schedule.kind=step", "optim.schedule.milestones=[0.9,0.8]"),
        ["milestones"],
    ),
    (
        (*DEMO, "optim.schedule.kind=step", "optim.schedule.milestones=[0.9]"),
        ["milestones", "factors"],
    ),
    ((*DEMO, "model.adaptor.kind=mlp"), ["sam, siglip", "'mlp', which reads one"]),
    ((*DEMO, "model.siglip=null"), ["sam", "'hybrid_split', which joins two"]),
    (
        (*DEMO, "+optim.parts={vision: {lr_multiplier: 0.1}}"),
        ["optim.parts", "'vision'", "Take it out with '~optim.parts.vision'"],
    ),
    (
        (*DEMO, "optim.parts.adaptor.lr_multiplier=-1"),
        ["optim.parts.adaptor.lr_multiplier=-1.0: must not be negative"],
    ),
    ((*DEMO, "optim.parts.adaptor.weight_decay=-1"), ["adaptor.weight_decay=-1.0: must not"]),
    (
        (*DEMO, "optim.parts.adaptor.warmup_steps=300"),
        ["optim.parts.adaptor.warmup_steps=300", "optim.steps=300"],
    ),
    ((*DEMO, "optim.parts.adaptor.warmup_steps=-1"), ["adaptor.warmup_steps=-1: must not"]),
    ((*DEMO, "optim.schedule.factors=[0.5,-0.1]"), ["factors=[0.5, -0.1]", "0 or more"]),
    (
        (*DEMO, "model=tiny_vl2", "model.router.penalty_weight=-1"),
        ["penalty_weight=-1.0: must not be negative"],
    ),
    (
        (*DEMO, "model=tiny_vl2", "model.router.correction_step=-1"),
        ["correction_step=-1.0: must not be negative"],
    ),
    ((*DEMO, "run.seed=-1"), ["run.seed=-1", "4294967295"]),
    ((*DEMO, "run.seed=4294967296"), ["run.seed=4294967296", "4294967295"]),
    (
        (*DEMO, "model.language.kv_heads=3"),
        ["model.language.kv_heads is 3", "heads is 4", "divides"],
    ),
]


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[r[0][-1] for r in REFUSED])
def test_refused_configs(compose, words: tuple[str, ...], said: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        compose(*words)
    for word in said:
        assert word in str(error.value)


POLICY_REFUSES = [
    ("stage=1", "stage.trainable=[adaptor,language]", ["stay frozen", "language"]),
    ("stage=1", "stage.trainable=[]", ["lacks", "adaptor"]),
    ("stage=1", "stage.learn=answers", ["stage.learn=answers", "all"]),
    ("stage=2", "stage.trainable=[adaptor,language,siglip]", ["siglip", "stay frozen"]),
    ("stage=2", "stage.trainable=[adaptor]", ["lacks", "language"]),
    ("stage=3", "stage.trainable=[adaptor,language,sam]", ["sam", "stay frozen"]),
    ("stage=3", "stage.learn=all", ["stage.learn=all", "answers"]),
    (
        "stage=3",
        "stage.template=plain",
        ["stage.template=plain", "expected for deepseek_vl: deepseek"],
    ),
    ("stage=3", "data.sources.easy_vqa_what.learn=all", ["would train on prompts"]),
    ("stage=3", "data.sources.easy_vqa_what.kind=caption", ["caption records", "conversation"]),
    ("stage=1", "data.mixture.language_share=0.5", ["modality language"]),
    ("stage=2", "model.family=other", ["model.family='other'", "deepseek_vl"]),
]


@pytest.mark.parametrize(("stage", "word", "said"), POLICY_REFUSES)
def test_policies_refuse_what_the_schema_accepts(
    compose, stage: str, word: str, said: list[str]
) -> None:
    config = compose(stage, "+experiment=demo", word)
    with pytest.raises(ConfigError) as error:
        policy_of(config.stage.number).check(config)
    for piece in said:
        assert piece in str(error.value)


def test_a_stage_without_data_says_what_to_do(compose) -> None:
    config = compose("stage=1", "+experiment=demo")
    config.data.sources.clear()  # as in a data file of one's own that names none
    with pytest.raises(ConfigError, match="has no data"):
        policy_of(1).check(config)


def test_unknown_names_list_the_choices(compose) -> None:
    with pytest.raises(MissingConfigException, match=r"Available options(.|\n)*1\n\t2\n\t3"):
        compose("stage=4")
    with pytest.raises(MissingConfigException, match="deepseek_vl_7b"):
        compose("stage=2", "model=llava")
    with pytest.raises(ConfigCompositionException, match=r"optim\.lrr"):
        compose("stage=2", "optim.lrr=1")
    for word, choices in (
        ("metrics.wandb.mode=on", "auto, online, offline"),
        ("model.attention=flash_attention_2", "sdpa, eager"),  # others do not isolate documents
    ):
        with pytest.raises(ConfigCompositionException) as refused:
            compose("stage=2", word)
        assert f"expected one of [{choices}]" in str(refused.value.__cause__)
    with pytest.raises(ConfigError, match=r"1 \(align\), 2 \(pretrain\), 3 \(finetune\)"):
        policy_of(4)


def test_policies_are_numbered_as_the_stage_files() -> None:
    assert sorted(POLICIES) == sorted(int(name) for name in yaml_options("stage"))


def test_the_resolved_config_is_yaml_that_holds_every_value(compose) -> None:
    text = to_yaml(compose(*DEMO))
    assert "language_share: 0.7" in text
    assert "???" not in text
    assert "${" not in text


@pytest.mark.parametrize(
    ("damage", "word"), [("", "optim.lr=[1"), ("", "run.name='x"), ("\nx: [", "optim.lr=1")]
)
def test_words_or_a_file_that_are_not_yaml(compose, tmp_path, damage: str, word: str) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(compose(*DEMO)) + damage)
    with pytest.raises(ConfigError, match=r"is not YAML .*quote words with brackets") as error:
        from_file(tmp_path / "config.yaml", overrides=[word])
    assert f"config.yaml with the words {[word]}" in str(error.value)


def test_written_paths_hold_in_any_working_directory(compose, tmp_path, monkeypatch) -> None:
    config = compose(*DEMO, "model.weights.sam=kept/sam", "model.tokenizer=kept/words")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert config.model.weights.sam == "kept/sam"  # as given
    read = from_file(tmp_path / "config.yaml")
    assert read.model.weights.sam == str(tmp_path / "kept/sam")
    assert read.model.weights.siglip == config.model.weights.siglip is None
    assert read.model.tokenizer == str(tmp_path / "kept/words")
    assert read.init_from == str(tmp_path / str(config.init_from))
