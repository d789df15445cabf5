"""The page and the sheet: whole, escaped, self-contained."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image
from tiny_mix import Opened, data_config, open_mix, text_source

from vltrain.batch import PieceRef
from vltrain.data.config import MixtureConfig
from vltrain.inspection.contact_sheet import contact_sheet
from vltrain.inspection.page import COLORS, render_page, strip
from vltrain.inspection.recorded import Proof
from vltrain.inspection.step_table import terminal_step
from vltrain.inspection.step_view import StepView, TokenKind

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks nesting; keeps words, marked words and picture sources."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.marked: list[str] = []
        self.images: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        assert tag != "script"
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.words.append(data)
        if self.open and self.open[-1] == "mark":
            self.marked.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(opened: Opened, views: list[StepView], **settings) -> Page:
    values: dict = {"title": "a stage", "about": "a run", "notes": ["mind this"], "proofs": {}}
    return Page(
        render_page(
            views,
            names=[table.name for table in opened.tables],
            packing=opened.config.packing,
            locate=lambda ref: opened.reader.origin(ref.source, ref.piece),
            **{**values, **settings},
        )
    )


def test_everything_of_a_step_is_on_the_page(mix: Callable[..., Opened]) -> None:
    opened = mix()
    views = opened.views(2)
    page = page_of(opened, views)
    for word in ("Step 1", "Step 2", "mind this", "a run", "words", "pictures"):
        assert word in page.text
    for view in views:
        assert f"digest {view.digest}" in page.text
        for pack in view.packs:
            assert f"Pack {pack.plan.number}" in page.text
            for piece in pack.pieces:
                assert page.text.split().count(str(piece.origin)) == 1
    learned = [
        run.text
        for view in views
        for pack in view.packs
        for piece in pack.pieces
        for run in piece.runs
        if run.kind is TokenKind.learned
    ]
    assert page.marked[1:] == learned  # the first explains the marks
    pictures = sum(len(pack.pictures) for view in views for pack in view.packs)
    assert len(page.images) == pictures + 8  # a strip for each pack
    for image in page.images:
        data = base64.b64decode(image.removeprefix("data:image/png;base64,"), validate=True)
        Image.open(io.BytesIO(data)).verify()


def test_tiles_are_counted_under_their_picture(mix: Callable[..., Opened]) -> None:
    opened = mix()
    views = opened.views(2)
    shown = [(view, pack) for view in views for pack in view.packs if pack.grids]
    assert "tiles" not in page_of(opened, views).text
    view, pack = shown[0]
    tiled = replace(view, packs=(replace(pack, grids=((3, 2), *pack.grids[1:])),))
    assert page_of(opened, [tiled]).text.count("4 tokens, 3 x 2 tiles") == 1


def test_what_a_record_says_is_no_markup(tmp_path: Path) -> None:
    said = "<script>x()</script><b>&amp;"
    source = text_source(tmp_path / "t", {"a<i>b": said})
    opened = open_mix(data_config({"t": source}, mixture=MixtureConfig(language_share=1.0)))
    page = page_of(opened, opened.views(1), title="<u>a</u>")
    assert said in "".join(page.words)
    assert "a<i>b" in page.text
    assert "<u>a</u>" in page.text


def test_a_proof_is_shown_as_what_it_is(mix: Callable[..., Opened]) -> None:
    opened = mix()
    proof = Proof(step=1, found="aa", recorded="bb", is_linked=True)
    page = page_of(opened, opened.views(1), proofs={1: proof})
    assert "digest aa, but steps.jsonl has bb" in page.text


def test_packs_left_out_are_counted(mix: Callable[..., Opened]) -> None:
    opened = mix()
    page = page_of(opened, opened.views(1, shown_packs=1, read_all=False))
    assert "Pack 0" in page.text
    assert "Pack 1" not in page.text
    assert "3 packs more" in page.text
    assert "All 4 packs" in page.text
    assert "digest" not in page.text


def test_a_strip_has_a_column_for_every_token(mix: Callable[..., Opened]) -> None:
    pack = next(p for v in mix().views(3) for p in v.packs if p.pictures)
    row = np.asarray(strip(pack))
    assert row.shape == (1, len(pack.kinds), 3)
    image = int(np.flatnonzero(pack.kinds == TokenKind.image)[0])
    red, green, blue = row[0, image]
    assert f"#{red:02x}{green:02x}{blue:02x}" == COLORS[TokenKind.image]


def test_the_sheet_has_a_cell_for_every_picture(mix: Callable[..., Opened], tmp_path) -> None:
    views = mix().views(2)
    pictures = sum(len(pack.pictures) for view in views for pack in view.packs)
    assert 8 < pictures <= 16
    sheet = Image.open(io.BytesIO(contact_sheet(views) or b""))
    assert sheet.size == (8 + 8 * 136, 8 + 2 * 166)
    # Each picture is red, left of centre and under the margin: one in every cell.
    reds = [
        sheet.getpixel((8 + 136 * (n % 8) + 64, 8 + 166 * (n // 8) + 64)) for n in range(pictures)
    ]
    assert reds == [(255, 0, 0)] * pictures
    assert sheet.getpixel((8 + 136 * 7 + 64, 8 + 166 + 64)) == (255, 255, 255)


def test_no_pictures_no_sheet(tmp_path: Path) -> None:
    source = text_source(tmp_path / "t", {"a": "b"})
    opened = open_mix(data_config({"t": source}, mixture=MixtureConfig(language_share=1.0)))
    assert contact_sheet(opened.views(1)) is None


def test_the_terminal_table(tmp_path: Path) -> None:
    source = text_source(tmp_path / "t", {f"k{i}": "x" * 28 for i in range(8)})  # 30 tokens each
    config = data_config({"t": source}, mixture=MixtureConfig(language_share=1.0))
    opened = open_mix(config)
    step = next(opened.plan.steps())

    def locate(ref: PieceRef):
        return opened.reader.origin(ref.source, ref.piece)

    text = terminal_step(step, names=["t"], packing=config.packing, locate=locate, shown_packs=3)
    lines = text.splitlines()
    assert lines[0] == (
        "step 1: language, 4 packs, 8 pieces, 240 tokens, 93.8% full, 232 targets, 0 images, "
        "language 100.0% (the mixture aims at 100.0% here)"
    )
    assert lines[2].split() == ["source", "pieces", "tokens", "targets", "images"]
    assert lines[3].split() == ["t", "8", "240", "232", "0"]
    first = str(locate(step.packs[0].pieces[0]))
    assert lines[6].split() == ["0", "2", "60", "58", "0", first, "and", "1", "more"]
    assert lines[-1] == "  ... and 1 packs more"
