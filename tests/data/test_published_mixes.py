"""The published mixes and the ablation mixes: their categories and data sets, and that a plan of
them holds their shares. Expected values: DeepSeek-VL Tables 1 and 2, Fig. 4."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from plan_fakes import picture_sizes, picture_table, take, text_sizes, text_table

from vltrain.batch import Modality
from vltrain.data.config import DataConfig
from vltrain.data.plan import Plan
from vltrain.data.recipe import Recipe

CONF = Path(__file__).resolve().parents[2] / "conf/data"

TABLE_1 = {
    "interleaved": 13.1,
    "caption": 11.1,
    "table_chart": 2.1,
    "web_code": 0.4,
    "scene_text_ocr": 1.2,
    "document_ocr": 2.1,
    "text": 70.0,
}
TABLE_1_SETS = {
    "interleaved": {"mmc4", "wikipedia", "wikihow", "textbooks"},
    "caption": {"capsfusion", "taisu", "detailed_caption"},
    "table_chart": {
        *("chart2text", "geo170k", "ureader", "unichart", "m_paper", "scienceqa", "screenqa"),
        *("scigraphqa_295k", "paper2figure100k", "widget_captioning", "screen2words", "refexp"),
    },
    "web_code": {"websight", "notebook_plots"},
    "scene_text_ocr": {
        *("art", "mlt17", "lsvt", "ubertext", "coco_text", "rctw17", "rects", "textocr"),
        *("openvino", "hiertext"),
    },
    "document_ocr": {"arxiv_markdown"},
    "sft": {"sft"},
    "text": {"text"},
}
TABLE_2 = {
    "taxonomy": 10.5,
    "general": 35.5,
    "table_chart": 4.1,
    "web_code": 2.0,
    "text_sft": 47.9,
}
TABLE_2_SETS = {
    "taxonomy": {"taxonomy"},
    "general": {
        *("sharegpt4v", "laion_gptv", "lvis_instruct4v", "textocr_gpt4v", "llava16_gpt4v"),
        "iconqa",
    },
    "table_chart": {"ureader", "geo170k", "scienceqa"},
    "web_code": {"screen_to_code", "screenqa"},
    "text_sft": {"text_sft"},
}


def with_paths(file: str) -> list[str]:
    """Words that give every source of a mix a folder."""
    names = OmegaConf.load(CONF / f"{file}.yaml").sources
    return [f"data.sources.{name}.path=somewhere/{name}" for name in names]


def sets_by_category(data: DataConfig) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, source in data.sources.items():
        found.setdefault(source.category, set()).add(name)
    return found


def plan_of(data: DataConfig) -> Plan:
    """The mix over sources of 4,000 samples with the lengths of the benchmarks."""
    longest = data.packing.sequence_length
    tables = [
        text_table(name, samples=4_000, sizes=text_sizes(longest=longest))
        if source.modality is Modality.language
        else picture_table(name, samples=4_000, sizes=picture_sizes(longest=longest))
        for name, source in data.sources.items()
    ]
    return Plan(Recipe(tables, config=data), seed=0)


def shares(data: DataConfig, steps, *, in_tokens: bool) -> dict[str, float]:
    """Per cent of each category in the steps."""
    categories = [source.category for source in data.sources.values()]
    counted: Counter[str] = Counter()
    for step in steps:
        for pack in step.packs:
            for ref in pack.pieces:
                counted[categories[ref.source]] += ref.tokens if in_tokens else 1
    total = sum(counted.values())
    return {category: 100 * count / total for category, count in counted.items()}


NO_RAMP = ("data.mixture.ramp.kind=none", "data.batch.sequences=32")


def test_stage_2_is_table_1(compose) -> None:
    config = compose("stage=2", *with_paths("deepseek_vl_stage2"), *NO_RAMP)
    data = config.data
    assert sets_by_category(data) == TABLE_1_SETS
    assert {c: w for c, w in data.mixture.category_weights.items() if c != "sft"} == TABLE_1
    found = shares(data, take(plan_of(data), 100), in_tokens=True)
    # 30 per cent are multimodal, of which one part in 31 is the SFT data that is blended in.
    for category, share in TABLE_1.items():
        wanted = share if category == "text" else share * 30 / 31
        assert found[category] == pytest.approx(wanted, abs=0.7), category
    assert found["sft"] == pytest.approx(30 / 31, abs=0.3)


def test_stage_3_is_table_2(compose) -> None:
    config = compose("stage=3", *with_paths("deepseek_vl_stage3"), "data.batch.sequences=32")
    data = config.data
    assert sets_by_category(data) == TABLE_2_SETS
    assert dict(data.mixture.category_weights) == TABLE_2
    found = shares(data, take(plan_of(data), 100), in_tokens=False)
    assert found == pytest.approx(TABLE_2, abs=0.2)


@pytest.mark.parametrize(
    ("multimodal", "language"), [(100, 0), (75, 25), (60, 40), (25, 75), (10, 90)]
)
def test_ablation_mixes_hold_their_ratio(compose, multimodal: int, language: int) -> None:
    name = f"deepseek_vl_stage2_{multimodal}_{language}"
    config = compose(
        "stage=2", f"data={name}", *with_paths("deepseek_vl_stage2"), "data.batch.sequences=32"
    )
    data = config.data
    assert sets_by_category(data) == TABLE_1_SETS
    steps = take(plan_of(data), 100)
    found = shares(data, steps, in_tokens=True)
    assert found.get("text", 0.0) == pytest.approx(language, abs=1.0)
    within = 31 / multimodal  # categories keep their shares of the multimodal part
    assert found["interleaved"] * within == pytest.approx(13.1, abs=2.0)
    assert all(step.language_share_target == language / 100 for step in steps)


def test_a_data_set_can_be_left_out(compose) -> None:
    words = [w for w in with_paths("deepseek_vl_stage2") if "mmc4" not in w]
    data = compose("stage=2", *words, "~data.sources.mmc4").data
    assert sets_by_category(data)["interleaved"] == {"wikipedia", "wikihow", "textbooks"}
