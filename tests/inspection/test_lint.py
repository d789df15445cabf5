"""What the lint finds in a mix, and what it leaves alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_mix import caption_source, data_config, open_mix, text_source

from vltrain.data.config import DataConfig, MixtureConfig, WhenSpent
from vltrain.inspection.findings import Finding, Level, count_words
from vltrain.inspection.lint import LintReport, lint_mix

LANGUAGE = MixtureConfig(language_share=1.0)


def lint(config: DataConfig, *, steps: int = 4) -> LintReport:
    opened = open_mix(config)
    return lint_mix(opened.tables, held_out=opened.held_out, plan=opened.plan, steps=steps)


def texts(first: int, count: int = 20, *, letter: str = "k") -> dict[str, str]:
    return {f"{letter}{i}": f"this is text {i}" for i in range(first, first + count)}


def clean(folder: Path, **settings) -> DataConfig:
    """A mix of which there is nothing to say."""
    held_out = {"other": text_source(folder / "other", texts(900))}
    sources = {"a": text_source(folder / "a", texts(0)), "b": text_source(folder / "b", texts(50))}
    return data_config(sources, **{"mixture": LANGUAGE, "held_out": held_out, **settings})


def only(report: LintReport) -> Finding:
    assert len(report.findings) == 1, [finding.words() for finding in report.findings]
    return report.findings[0]


def test_a_clean_mix(tmp_path: Path) -> None:
    report = lint(clean(tmp_path))
    assert report.findings == ()
    assert not report.has_errors
    assert count_words(report.findings) == "0 errors, 0 warnings"
    assert [(s.name, s.share, s.samples, s.cap) for s in report.sources] == [
        ("a", 0.5, 20, None),
        ("b", 0.5, 20, None),
    ]


# Train and held out


def test_a_record_on_both_sides(tmp_path: Path) -> None:
    config = clean(tmp_path)
    config.held_out["other"] = text_source(tmp_path / "other", {**texts(900), **texts(18, 2)})
    report = lint(config)
    finding = only(report)
    assert report.has_errors
    assert finding.check == "overlap_content"
    assert finding.where == "data.sources.a and data.held_out.other"
    assert "2 of 20 training samples are held out too" in finding.what
    assert "a.tar:k18, a.tar:k19" in finding.what
    assert finding.words().startswith("error (overlap_content): data.sources.a and")


def test_the_same_content_under_another_key(tmp_path: Path) -> None:
    config = clean(tmp_path)
    leaked = {"renamed": "this is text 3"}
    config.held_out["other"] = text_source(tmp_path / "other", {**texts(900), **leaked})
    assert only(lint(config)).check == "overlap_content"


def test_the_same_key_with_other_content(tmp_path: Path) -> None:
    config = clean(tmp_path)
    leaked = {"k3": "a question about text 3"}
    config.held_out["other"] = text_source(tmp_path / "other", {**texts(900), **leaked})
    finding = only(lint(config))
    assert (finding.level, finding.check) == (Level.error, "overlap_key")
    assert "1 of 20 training samples have the key of a held-out one" in finding.what
    assert "a.tar:k3" in finding.what


def test_keys_that_are_counters_are_only_warned_of(tmp_path: Path) -> None:
    config = clean(tmp_path)
    config.sources["a"] = text_source(tmp_path / "a", texts(0, letter="000"))
    config.held_out["other"] = text_source(
        tmp_path / "other", {f"000{i}": f"something else {i}" for i in range(20)}
    )
    report = lint(config)
    finding = only(report)
    assert (finding.level, finding.check) == (Level.warning, "overlap_key")
    assert "20 keys are on both sides" in finding.what
    assert not report.has_errors


def test_a_held_out_picture_with_another_text(tmp_path: Path) -> None:
    # Pictures are told apart by their widths: 8 to 27 are trained on, 26 to 45 are held out.
    captions = caption_source(tmp_path / "p", texts(0, letter="p"))
    other = caption_source(tmp_path / "other", texts(900, letter="q"), first_width=26)
    report = lint(
        data_config(
            {"p": captions},
            mixture=MixtureConfig(language_share=0.0),
            held_out={"other": other},
        )
    )
    finding = only(report)
    assert (finding.level, finding.check) == (Level.warning, "overlap_image")
    assert "2 of 20 training samples show a held-out picture" in finding.what
    assert "a.tar:p18, a.tar:p19" in finding.what
    assert not report.has_errors


def test_a_record_on_both_sides_is_said_once(tmp_path: Path) -> None:
    captions = caption_source(tmp_path / "p", texts(0, letter="p"))
    report = lint(
        data_config(
            {"p": captions},
            mixture=MixtureConfig(language_share=0.0),
            held_out={"other": caption_source(tmp_path / "other", texts(0, letter="p"))},
        )
    )
    assert only(report).check == "overlap_content"


def test_a_source_that_is_not_drawn_cannot_leak(tmp_path: Path) -> None:
    config = clean(tmp_path)
    config.held_out["other"] = text_source(tmp_path / "other", texts(0))
    config.sources["a"].weight = 0
    assert [finding.check for finding in lint(config).findings] == ["zero_weight"]


def test_nothing_held_out(tmp_path: Path) -> None:
    finding = only(lint(clean(tmp_path, held_out={})))
    assert (finding.level, finding.check) == (Level.warning, "no_held_out")
    assert "no language data is held out" in finding.what


def test_a_modality_that_is_not_held_out(tmp_path: Path) -> None:
    config = clean(tmp_path, mixture=MixtureConfig(language_share=0.5))
    config.sources["p"] = caption_source(tmp_path / "p", texts(300, letter="p"))
    finding = only(lint(config))
    assert finding.check == "no_held_out"
    assert "no multimodal data is held out" in finding.what


# Duplicates


def test_one_path_under_two_names(tmp_path: Path) -> None:
    config = clean(tmp_path)
    config.sources["b"] = config.sources["a"]
    report = lint(config)
    finding = only(report)
    assert report.has_errors
    assert finding.check == "duplicate_leaf"
    assert finding.where == "data.sources.a and data.sources.b"
    assert "1 of their 1 and 1 shards are the same files" in finding.what


def test_one_content_under_two_paths(tmp_path: Path) -> None:
    config = clean(tmp_path)
    shutil.copy(tmp_path / "a" / "a.tar", tmp_path / "b" / "a.tar")
    finding = only(lint(config))
    assert finding.check == "duplicate_leaf"
    assert "have the same content under other names" in finding.what


def test_most_samples_of_another_leaf(tmp_path: Path) -> None:
    config = clean(tmp_path)
    config.sources["b"] = text_source(tmp_path / "b", {**texts(0, 10), **texts(50, 10)})
    finding = only(lint(config))
    assert (finding.level, finding.check) == (Level.error, "duplicate_leaf")
    assert "10 samples are in both" in finding.what


def test_some_samples_of_another_leaf(tmp_path: Path) -> None:
    config = clean(tmp_path)
    config.sources["b"] = text_source(tmp_path / "b", {**texts(0, 9), **texts(50, 11)})
    finding = only(lint(config))
    assert (finding.level, finding.check) == (Level.warning, "shared_samples")
    assert "9 samples are in both" in finding.what


def test_two_modalities_of_one_path_are_no_duplicates(tmp_path: Path) -> None:
    captions = caption_source(tmp_path / "p", texts(0, letter="p"))
    held_out = {"other": caption_source(tmp_path / "other", texts(900, letter="p"), first_width=30)}
    config = data_config(
        {"p": captions}, mixture=MixtureConfig(language_share=0.0), held_out=held_out
    )
    assert lint(config).findings == ()


def test_copies_inside_a_leaf(tmp_path: Path) -> None:
    config = clean(tmp_path)
    config.sources["a"] = text_source(tmp_path / "a", {**texts(0), "again": "this is text 7"})
    finding = only(lint(config))
    assert (finding.level, finding.check) == (Level.warning, "copies")
    assert "1 of 21 samples are copies" in finding.what


# Weights and epochs


def test_weight_zero(tmp_path: Path) -> None:
    config = clean(tmp_path)
    config.sources["b"].weight = 0
    finding = only(lint(config))
    assert (finding.level, finding.check) == (Level.warning, "zero_weight")
    assert finding.where == "data.sources.b"
    assert "none of its 20 samples is ever drawn" in finding.what


def test_a_category_of_weight_zero(tmp_path: Path) -> None:
    mixture = MixtureConfig(language_share=1.0, category_weights={"odd": 0})
    config = clean(tmp_path, mixture=mixture)
    config.sources["b"].category = "odd"
    finding = only(lint(config))
    assert finding.check == "zero_weight"
    assert "its category 'odd' has weight 0" in finding.what


def test_a_modality_that_the_mix_does_not_hold(tmp_path: Path) -> None:
    config = clean(tmp_path)
    config.sources["p"] = caption_source(tmp_path / "p", texts(300, letter="p"))
    finding = only(lint(config))
    assert finding.check == "never_drawn"
    assert "the mix holds no multimodal data at any step" in finding.what


def test_expected_epochs_and_repetition(tmp_path: Path) -> None:
    # 20 texts of 14 or 15 bytes: 16 or 17 tokens. 4 packs of 64 a step, half of them for each.
    config = clean(tmp_path)
    config.sources["b"] = text_source(tmp_path / "b", texts(50, 40))
    quiet = lint(config, steps=8)
    epochs = {source.name: source.epochs for source in quiet.sources}
    assert quiet.findings == ()
    assert epochs["a"] == pytest.approx(8 * 256 / 2 / (20 * 16.5), rel=0.02)
    assert epochs["b"] == pytest.approx(8 * 256 / 2 / (40 * 17), rel=0.02)
    finding = only(lint(config, steps=12))
    assert (finding.level, finding.check) == (Level.warning, "repeats")
    assert finding.where == "data.sources.a"
    assert "will be seen 4.7 times in 12 steps" in finding.what


def test_a_source_that_is_spent_before_the_end(tmp_path: Path) -> None:
    config = clean(tmp_path)
    config.sources["a"].max_epochs = 1
    report = lint(config, steps=8)
    finding = only(report)
    assert (finding.level, finding.check) == (Level.warning, "ends_early")
    assert "spent after max_epochs=1 at about step 2 of 8" in finding.what
    assert report.sources[0].cap == 1
    assert lint(config, steps=2).findings == ()


@pytest.mark.parametrize("max_epochs", [0.33, 1])  # a third of 20 texts is 7 of them, 0.35 epochs
def test_a_source_that_leaves_does_not_end_the_stage(tmp_path: Path, max_epochs: float) -> None:
    config = clean(tmp_path)
    config.sources["b"] = text_source(tmp_path / "b", texts(50, 90))
    config.sources["a"].max_epochs = max_epochs
    config.sources["a"].when_spent = WhenSpent.leave
    finding = only(lint(config, steps=8))
    assert (finding.level, finding.check) == (Level.warning, "leaves_early")
    assert f"seen max_epochs={max_epochs:g} times before step 8, and leaves the mix" in finding.what
    assert finding.where == "data.sources.a"


def test_a_weight_too_small_to_matter(tmp_path: Path) -> None:
    config = clean(tmp_path)
    config.sources["b"].weight = 1e-6
    finding = only(lint(config))
    assert (finding.level, finding.check) == (Level.warning, "never_drawn")
    assert "of a sample is expected in 4 steps" in finding.what


def test_errors_come_first(tmp_path: Path) -> None:
    config = clean(tmp_path)
    config.sources["b"] = config.sources["a"]
    config.held_out.clear()
    levels = [finding.level for finding in lint(config).findings]
    assert levels == [Level.error, Level.warning]
    assert count_words(lint(config).findings) == "1 error, 1 warning"
