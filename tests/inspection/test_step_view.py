"""What is shown of a pack is what the model gets: text, masks, places, pictures, holes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from shard_makers import byte_tokenizer, png, write_tar
from tiny_mix import Opened, data_config, open_mix, text_source

from vltrain.batch import Learn, MicroBatchPlan, Modality, RecordKind
from vltrain.data.config import BatchConfig, MixtureConfig, PackingConfig, SourceConfig
from vltrain.inspection.step_view import TokenKind, thumbnail, view_pack

BOS, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
UNPACKED = {
    "packing": PackingConfig(sequence_length=64, window_samples=4, max_images=2),
    "batch": BatchConfig(sequences=1),
}
MULTIMODAL = MixtureConfig(language_share=0.0)


def one_source(folder: Path, members: list[tuple[str, bytes]], **source) -> Opened:
    """One record alone in every pack."""
    write_tar(folder / "one" / "a.tar", members)
    config = SourceConfig(path=str(folder / "one"), modality=Modality.multimodal, **source)
    return open_mix(data_config({"one": config}, mixture=MULTIMODAL, **UNPACKED))


def test_a_text(tmp_path: Path) -> None:
    source = text_source(tmp_path / "t", {"only": "héllo"})
    config = data_config({"t": source}, mixture=MixtureConfig(language_share=1.0), **UNPACKED)
    (view,) = open_mix(config).views(1)
    assert view.number == 1
    ((piece,),) = [pack.pieces for pack in view.packs]
    assert str(piece.origin) == "t:a.tar:only"
    assert [(r.kind, r.tokens, r.text) for r in piece.runs] == [
        (TokenKind.masked, 1, BOS),
        (TokenKind.learned, 7, f"héllo{END}"),
    ]
    assert (piece.start, piece.end, piece.first_position, piece.last_position) == (0, 8, 0, 7)
    assert (piece.segment, piece.supervised, piece.images) == (1, 7, 0)
    assert view.packs[0].kinds.tolist() == [1] + [2] * 7


def test_a_conversation_learns_its_answers_alone(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "<image>\nwhat?"},
        {"role": "assistant", "content": "red"},
    ]
    members = [("k.json", json.dumps({"messages": messages}).encode()), ("k.0.png", png(20, 20))]
    opened = one_source(tmp_path, members, kind=RecordKind.conversation, learn=Learn.answers)
    pack = opened.views(1)[0].packs[0]
    (piece,) = pack.pieces
    learned = [run.text for run in piece.runs if run.kind is TokenKind.learned]
    assert learned == [f" red{END}"]
    (image,) = [run for run in piece.runs if run.kind is TokenKind.image]
    assert (image.tokens, image.text, image.image) == (4, "", 0)
    assert pack.pictures[0].shape == (16, 16, 3)
    assert (pack.pictures[0] == [255, 0, 0]).all()
    masked = "".join(run.text for run in piece.runs if run.kind is TokenKind.masked)
    assert masked.startswith(BOS)
    assert masked.endswith("what?\n\nAssistant:")


def test_neighbouring_images_are_told_apart(tmp_path: Path) -> None:
    record = {"texts": [None, None, "two"], "images": ["0.png", "1.png", None]}
    members = [
        ("k.json", json.dumps(record).encode()),
        ("k.0.png", png(16, 16, color="red")),
        ("k.1.png", png(16, 16, color="blue")),
    ]
    opened = one_source(tmp_path, members, kind=RecordKind.interleaved)
    pack = opened.views(1)[0].packs[0]
    images = [run for run in pack.pieces[0].runs if run.kind is TokenKind.image]
    assert [(run.tokens, run.image) for run in images] == [(4, 0), (4, 1)]
    assert [picture[0, 0].tolist() for picture in pack.pictures] == [[255, 0, 0], [0, 0, 255]]
    assert pack.grids == ((0, 0), (0, 0))

    # The same with two tiles beside the first image and one beside the second.
    batch = opened.dataset[MicroBatchPlan(step=0, micro=0, packs=(pack.plan,), num_slots=1)]
    tiles = replace(
        batch,
        images=batch.images[[0, 1, 1, 1, 0]],
        grids=torch.tensor([[2, 1], [1, 1]]),
    )
    tiled = view_pack(
        pack.plan, tiles, modalities=opened.modalities, decode=byte_tokenizer().decode
    )
    assert tiled.grids == ((2, 1), (1, 1))
    assert [picture[0, 0].tolist() for picture in tiled.pictures] == [[255, 0, 0], [0, 0, 255]]


def test_pieces_of_a_pack_lie_side_by_side(mix: Callable[..., Opened]) -> None:
    packs = [pack for view in mix().views(3) for pack in view.packs]
    assert any(len(pack.pieces) > 2 for pack in packs)
    for pack in packs:
        edge = 0
        for number, piece in enumerate(pack.pieces, start=1):
            assert (piece.start, piece.segment) == (edge, number)
            assert (piece.first_position, piece.last_position) == (0, piece.end - piece.start - 1)
            assert sum(run.tokens for run in piece.runs) == piece.end - piece.start
            assert piece.runs[0].text == BOS
            kinds = pack.kinds[piece.start : piece.end]
            assert int((kinds == TokenKind.learned).sum()) == piece.supervised
            edge = piece.end
        assert edge == pack.plan.tokens
        assert not pack.kinds[edge:].any()
        numbers = [run.image for p in pack.pieces for run in p.runs if run.image is not None]
        assert numbers == list(range(len(pack.pictures)))


def test_a_hole_is_shown_as_one_and_pictures_stay_in_place(
    mix: Callable[..., Opened], tmp_path: Path
) -> None:
    opened = mix()
    whole = opened.views(8)
    shard = tmp_path / "pictures" / "a.tar"
    stat, data = shard.stat(), bytearray(shard.read_bytes())
    start = data.find(png(8 + 7))
    data[start + 34 : start + 60] = bytes(26)  # the pixels of p7; the header stays
    shard.write_bytes(data)
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    damaged = opened.views(8)
    holes = [p for view in damaged for pack in view.packs for p in pack.pieces if p.hole]
    assert {piece.origin.key for piece in holes} == {"p7"}
    assert holes[0].hole.split(":")[0] in ("truncated", "not_an_image")
    assert holes[0].runs == ()
    assert holes[0].segment == 0
    assert [view.digest for view in whole] != [view.digest for view in damaged]
    for before, after in zip(whole, damaged, strict=True):
        for pack, other in zip(before.packs, after.packs, strict=True):
            if not any(piece.hole for piece in other.pieces):
                assert pack.digest == other.digest


def test_packs_that_are_not_shown_are_read_for_the_digest_alone(mix: Callable[..., Opened]) -> None:
    opened = mix()
    everything = opened.views(2)
    assert [len(view.packs) for view in everything] == [4, 4]
    proved = opened.views(2, shown_packs=1, read_all=True)
    assert [view.digest for view in proved] == [view.digest for view in everything]
    assert [len(view.packs) for view in proved] == [1, 1]
    glanced = opened.views(2, shown_packs=1, read_all=False)
    assert [(len(view.packs), view.digest) for view in glanced] == [(1, None), (1, None)]
    assert [view.packs[0].plan.number for view in glanced] == [0, 4]


def test_large_pictures_are_made_small() -> None:
    square = np.zeros((384, 384, 3), dtype=np.uint8)
    square[:, 192:] = 200
    small = thumbnail(square)
    assert small.shape == (128, 128, 3)
    assert small[:, 10].max() == 0
    assert small[:, 120].min() == 200
    assert thumbnail(square[:16, :16]).shape == (16, 16, 3)
