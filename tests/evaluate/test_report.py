"""The report: everything that a run left behind is on the page, and nothing must be there."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from vltrain.errors import DataError
from vltrain.evaluate.charts import accuracy_bars, shown_samples
from vltrain.evaluate.report import attribution_lines, write_report
from vltrain.evaluate.results import (
    Accuracy,
    AnsweredSample,
    BoxAccuracy,
    BoxFigures,
    BoxScore,
    HeldOutLoss,
    Point,
    write_point,
)
from vltrain.evaluate.run_view import (
    find_runs,
    first_evaluated,
    read_cards,
    read_run,
    read_runs,
    token_totals,
)
from vltrain.evaluate.table import result_rows, terminal_table
from vltrain.metrics.jsonl import JsonlSink
from vltrain.metrics.rows import StepRow
from vltrain.metrics.summary import PartSummary, StageSummary, write_summary

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Checks nesting; keeps text and picture sources."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.images: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def png() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def row(step: int, *, stage: str) -> StepRow:
    language = step % 2 == 0
    tokens = {"language": 70 if language else 0, "multimodal": 0 if language else 30}
    return StepRow(
        step=step,
        time=0.0,
        stage=stage,
        loss=4.0 - step / 10,
        lr={"adaptor": 1e-3},
        grad_norm=1.0,
        modality="language" if language else "multimodal",
        tokens=tokens,
        planned_tokens=tokens if step > 1 else {"language": 0, "multimodal": 40},
        supervised=tokens,
        images=0 if language else 1,
        packs=1,
        holes=1 if step == 1 else 0,
        language_share_target=0.7,
        language_share_realised=0.7,
        digest="",
        chain="",
        seconds=30.0,
        data_wait_seconds=0.0,
        skipped=False,
    )


def answered(key: str, answer: str, *, group: str = "what") -> AnsweredSample:
    return AnsweredSample(
        source="quiz",
        group=group,
        key=key,
        question="What <b>color</b>, for $5 or $6?",
        expected="red",
        answer=answer,
        blank_answer="blue",
        image_png=png(),
    )


def point(stage: str, right: int) -> Point:
    return Point(
        stage=stage,
        step=10,
        model=f"runs/{stage}",
        held_out={
            "prose": HeldOutLoss(records=2, targets=50, loss=3.25, blank_loss=None, faults=0),
            "colors": HeldOutLoss(records=2, targets=9, loss=1.5, blank_loss=2.5, faults=0),
        },
        questions={"quiz": {"what": Accuracy(asked=10, right=right, right_blank=2, chance=None)}},
        choices={"colors": Accuracy(asked=4, right=2, right_blank=1, chance=0.1)},
        samples={"quiz": (answered("what-1", "red"), answered("what-2", ""))},
    )


def write_run(
    directory: Path,
    *,
    stage: str,
    right: int,
    after: str = "aa",
    number: int = 1,
    time: float = 0.0,
) -> Path:
    sink = JsonlSink(directory / "steps.jsonl")
    for step in range(1, 11):
        sink.write(replace(row(step, stage=stage), time=time + step))
    sink.close()
    write_point(directory, point=point(stage, right))
    parts = (
        PartSummary(
            part="sam",
            parameters=1234567,
            trainable=0,
            trained_tensors=(),
            frozen_tensors=3,
            frozen_digest_before="aa",
            frozen_digest_after=after,
        ),
        PartSummary(
            part="adaptor",
            parameters=10,
            trainable=10,
            trained_tensors=("adaptor.alpha",),
            frozen_tensors=0,
            frozen_digest_before=None,
            frozen_digest_after=None,
        ),
    )
    summary = StageSummary(
        number=number, name=stage, steps=10, init_from="the warm start", parts=parts, notes=()
    )
    write_summary(directory, summary=summary)
    (directory / "config.yaml").write_text("optim:\n  lr: 0.001\n")
    return directory


def report(tmp_path: Path, runs: list[Path], **changes) -> tuple[Page, str]:
    settings = {"title": "Three stages", "card_folders": [], "notes": [], **changes}
    html, picture = tmp_path / "out" / "report.html", tmp_path / "out" / "quickstart.png"
    table = write_report(read_runs(runs), html=html, picture=picture, **settings)
    with Image.open(picture) as image:
        assert image.width > 1000
    return Page(html.read_text(encoding="utf-8")), table


def test_the_page_shows_everything(tmp_path):
    runs = [
        write_run(tmp_path / "stage1", stage="align", right=3),
        write_run(tmp_path / "stage2", stage="pretrain", right=7, after="bb"),
    ]
    (tmp_path / "data").mkdir()
    card = {"name": "Colors", "source": "made", "licence": "CC0", "attribution": "by us"}
    (tmp_path / "data" / "card.json").write_text(json.dumps(card))
    page, table = report(
        tmp_path,
        runs,
        card_folders=[tmp_path / "data", tmp_path / "none"],
        notes=["A short warm start stands for published checkpoints."],
    )
    for words in (
        "A short warm start stands for published checkpoints.",
        "after align after pretrain",
        "70.0 (20.0)",
        "1.500 (2.500)",
        "What <b>color</b>, for $5 or $6?",
        "(nothing) expected: red",
        "Started from the warm start",
        "1,234,567",
        "unchanged aa",
        "CHANGED",
        "adaptor.alpha",
        "10 steps in 5m00s",
        "1 bad records",
        "lr: 0.001",
        "Colors made CC0 by us",
    ):
        assert words in page.text, words
    assert all(source.startswith("data:image/png;base64,") for source in page.images)
    assert "quiz: what, % right" in table


def test_a_run_without_results_or_summary_is_enough(tmp_path):
    sink = JsonlSink(tmp_path / "run" / "steps.jsonl")
    sink.write(row(1, stage="align"))
    sink.close()
    page, table = report(tmp_path, [tmp_path / "run"])
    assert "Nothing evaluated yet." in page.text
    assert table == "nothing evaluated yet"


def test_results_without_steps_are_enough(tmp_path):
    write_point(tmp_path / "run", point=point("align", 3))
    page, _ = report(tmp_path, [tmp_path / "run"])
    assert "30.0 (20.0)" in page.text


def test_nothing_to_report_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"nothing to report: no steps\.jsonl or results\.json in"):
        report(tmp_path, [tmp_path])
    with pytest.raises(DataError, match="is no run directory"):
        report(tmp_path, [tmp_path / "gone"])


def test_token_totals_compare_planned_with_realised(tmp_path):
    run = read_run(write_run(tmp_path / "a", stage="align", right=1))
    totals = token_totals(run.rows)
    assert totals.planned == {"language": 350, "multimodal": 160}
    assert totals.realised == {"language": 350, "multimodal": 150}
    assert totals.realised_share == pytest.approx(0.7)
    assert (totals.holes, totals.images, totals.seconds) == (1, 5, 300.0)
    assert (totals.mfu, totals.useful_share) == (None, None)


def test_mfu_and_useful_tokens_are_shown_where_they_are_known(tmp_path):
    run = write_run(tmp_path / "a", stage="align", right=1)
    page, _ = report(tmp_path, [run])
    assert "MFU" not in page.text
    assert "held a token" not in page.text
    sink = JsonlSink(run / "steps.jsonl")
    sink.write(replace(row(11, stage="align"), mfu=0.4123, slots=100))
    sink.close()
    useful = sum(row(11, stage="align").tokens.values())
    page, _ = report(tmp_path, [run])
    assert f"{useful}.0 % of the computed places held a token; MFU 41.2 %." in page.text


def test_runs_are_found_by_name(tmp_path):
    for name in ("stage2", "stage1"):
        write_run(tmp_path / name, stage=name, right=1)
    (tmp_path / "warm_start").mkdir()
    assert [p.name for p in find_runs(tmp_path)] == ["stage1", "stage2"]
    assert find_runs(tmp_path / "stage1") == [tmp_path / "stage1"]


def test_runs_of_a_sweep_lie_one_level_deeper(tmp_path):
    for number in (0, 1):
        write_run(tmp_path / "sweep" / f"{number},optim.lr=1", stage="align", right=1)
    found = find_runs(tmp_path)
    assert [str(p.relative_to(tmp_path)) for p in found] == [
        "sweep/0,optim.lr=1",
        "sweep/1,optim.lr=1",
    ]


def test_runs_come_in_the_order_of_training_whatever_their_names(tmp_path):
    write_run(tmp_path / "a", stage="finetune", right=1, number=3, time=50.0)
    write_run(tmp_path / "debug", stage="align", right=1, number=1, time=10.0)
    (tmp_path / "debug" / "results.json").unlink()
    write_run(tmp_path / "later", stage="align", right=1, number=1, time=90.0)
    write_run(tmp_path / "stage1", stage="align", right=7, number=1, time=20.0)
    write_run(tmp_path / "zero", stage="pretrain", right=1, number=2, time=30.0)
    (tmp_path / "zero" / "summary.json").unlink()
    runs = read_runs(find_runs(tmp_path))
    assert [run.name for run in runs] == ["debug", "stage1", "later", "a", "zero"]
    first = first_evaluated(runs)
    assert first is not None
    assert first.name == "stage1"
    assert first_evaluated(runs[:1]) is None
    assert first_evaluated([]) is None


def test_an_attribution_that_another_line_holds_is_not_said_again(tmp_path):
    lines = {"a": "by us", "b": "by us. by them", "c": "", "d": "by us", "e": "photographs"}
    for name, words in lines.items():
        (tmp_path / name).mkdir()
        card = {"name": name, "attribution": words}
        (tmp_path / name / "card.json").write_text(json.dumps(card))
    cards = read_cards([tmp_path / name for name in "abcde"])
    assert attribution_lines(cards) == ["by us. by them", "photographs"]


def test_the_same_card_is_shown_once(tmp_path):
    for name in ("train", "held_out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "card.json").write_text('{"name": "Colors"}')
    cards = read_cards([tmp_path / "train", tmp_path / "held_out"])
    assert [card.name for card in cards] == ["Colors"]


def test_the_table_aligns_and_marks_what_was_not_measured():
    first = Point(stage="warm", step=0, model="m", held_out=point("align", 1).held_out)
    lines = terminal_table([first, point("align", 7)]).splitlines()
    assert lines[0].split() == ["held", "out", "after", "warm", "after", "align"]
    assert lines[2].split() == [
        "quiz:",
        "what,",
        "%",
        "right",
        "-",
        "70.0",
        "(20.0)",
        "10",
        "asked",
    ]
    assert lines[3].endswith("4 asked, guessing 10%")
    assert lines[5].split() == [
        "colors,",
        "loss",
        "1.500",
        "(2.500)",
        "1.500",
        "(2.500)",
        "9",
        "targets",
    ]
    assert lines[-1] == "(in brackets: the same with every picture blanked)"


def test_counts_that_differ_are_given_point_by_point():
    more = replace(
        point("pretrain", 15),
        questions={"quiz": {"what": Accuracy(asked=20, right=15, right_blank=5, chance=None)}},
        held_out={"prose": HeldOutLoss(records=9, targets=70, loss=2.0, blank_loss=None, faults=0)},
    )
    warm = Point(stage="warm", step=0, model="m")
    quiz, colors, prose, *_ = result_rows([warm, point("align", 7), more])
    assert quiz.cells == ("-", "70.0 (20.0)", "75.0 (25.0)")
    assert quiz.note == "10, 20 asked"
    assert colors.cells == ("-", "50.0 (25.0)", "50.0 (25.0)")
    assert colors.note == "4 asked, guessing 10%"
    assert prose.cells == ("-", "3.250", "2.000")
    assert prose.note == "50, 70 targets"


BOXES = BoxAccuracy(
    threshold=0.5,
    seen=BoxFigures(one_box=8, right=6, several_boxes=2, f1=0.7, iou=0.61, unreadable=1),
    blank=BoxFigures(one_box=8, right=2, several_boxes=2, f1=0.2, iou=0.1, unreadable=9),
)
ONE_BOX = BoxAccuracy(
    threshold=0.5,
    seen=BoxFigures(one_box=4, right=1, several_boxes=0, f1=None, iou=0.3, unreadable=2),
    blank=None,
)


def test_boxes_have_rows_of_their_own():
    first = Point(stage="align", step=1, model="m", boxes={"maps": {"find": ONE_BOX}})
    second = Point(stage="pretrain", step=1, model="m", boxes={"maps": {"find": BOXES}})
    neither = Point(stage="finetune", step=1, model="m")
    rows = [(r.measure, r.cells, r.note) for r in result_rows([first, second, neither])]
    assert rows == [
        ("maps: find, box, % right at IoU 0.5", ("25.0", "75.0 (25.0)", "-"), "4, 8 asked"),
        ("maps: find, F1 of boxes, % at IoU 0.5", ("-", "70.0 (20.0)", "-"), "2 asked"),
        ("maps: find, mean IoU, %", ("30.0", "61.0 (10.0)", "-"), "4, 10 asked"),
        ("maps: find, answers without a box", ("2", "1 (9)", "-"), "4, 10 asked"),
    ]


def test_boxes_on_the_page(tmp_path):
    pointed = replace(
        answered("find-1", "<|det|>[[0, 0, 9, 9]]<|/det|>", group="find"),
        boxes=BoxScore(expected=1, readable=True, f1=0.0, iou=0.456),
    )
    maps = {"boxes": {"maps": {"find": BOXES}}, "samples": {"maps": (pointed,)}}
    write_point(tmp_path / "run", point=Point(stage="align", step=1, model="m", **maps))
    page, table = report(tmp_path, [tmp_path / "run"])
    assert "75.0 (25.0)" in page.text
    assert "<|det|>[[0, 0, 9, 9]]<|/det|> (IoU 0.46) expected: red" in page.text
    assert "maps: find, answers without a box" in table


def test_bars_keep_the_order_of_points():
    bars = accuracy_bars([point("align", 1), point("pretrain", 7)])
    assert [bar.label for bar in bars] == ["quiz: what", "colors: which caption?"]
    assert [(n, f.right) for n, f in bars[0].figures] == [(0, 1), (1, 7)]


def test_samples_come_from_the_newest_point_in_turns():
    samples = (*(answered(f"a{n}", "x") for n in range(4)), answered("b0", "x", group="is"))
    old = Point(stage="a", step=1, model="m", samples={"quiz": (answered("old", "x"),)})
    new = Point(stage="b", step=1, model="m", samples={"quiz": samples})
    assert [s.key for s in shown_samples([old, new], number=3)] == ["b0", "a0", "a1"]
    empty = Point(stage="c", step=1, model="m")
    assert [s.key for s in shown_samples([old, empty], number=3)] == ["old"]
    assert shown_samples([], number=3) == []
