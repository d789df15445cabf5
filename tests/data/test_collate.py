from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from vltrain.batch import (
    IGNORE,
    Example,
    Fault,
    MicroBatchPlan,
    Modality,
    Origin,
    PackPlan,
    PieceRef,
    StoredImage,
)
from vltrain.data.collate import ReadPiece, collate
from vltrain.data.digest import pack_digest
from vltrain.errors import DataError

IMAGE = 3
SIDE = 4


def origin(key: str) -> Origin:
    return Origin(source="s", shard="0.tar", key=key)


def piece(key, ids, learned, *, image_starts=(), image_tokens=0, modality=None) -> ReadPiece:
    """``learned`` as a string of 0 and 1; images of ``image_tokens`` placeholders each."""
    images = tuple(
        StoredImage(member=f"{n}.png", data=f"{key}{n}".encode(), width=1, height=1)
        for n in range(len(image_starts))
    )
    example = Example(
        origin=origin(key),
        ids=np.array(ids, dtype=np.int32),
        learned=np.array([c == "1" for c in learned]),
        image_starts=np.array(image_starts, dtype=np.int32),
        image_tokens=np.full(len(images), image_tokens, dtype=np.int32),
        images=images,
    )
    ref = PieceRef(
        source=0,
        piece=0,
        tokens=len(ids),
        supervised=example.num_supervised,
        image_tokens=image_tokens * len(images),
        images=len(images),
    )
    squares = tuple(np.full((1, SIDE, SIDE, 3), n + 1, dtype=np.uint8) for n in range(len(images)))
    modality = modality or (Modality.multimodal if images else Modality.language)
    return ReadPiece(
        ref=ref, origin=example.origin, modality=modality, example=example, squares=squares
    )


def hole(like: ReadPiece) -> ReadPiece:
    fault = Fault(origin=like.origin, reason="truncated", detail="x", action="hole")
    return dataclasses.replace(like, example=None, squares=(), fault=fault)


def plan_of(*rows: list[ReadPiece], num_slots: int | None = None) -> MicroBatchPlan:
    packs = tuple(
        PackPlan(
            number=10 + n,
            modality=Modality.multimodal,
            pieces=tuple(p.ref for p in row),
        )
        for n, row in enumerate(rows)
    )
    return MicroBatchPlan(step=1, micro=0, packs=packs, num_slots=num_slots or len(packs))


def collated(*rows: list[ReadPiece]):
    return collate(plan_of(*rows), rows, image_token_id=IMAGE, image_side=SIDE)


TEXT = piece("t", [0, 11, 12, 1], "0011")
PICTURE = piece("p", [0, 3, 3, 21, 1], "00011", image_starts=[1], image_tokens=2)


def test_two_pieces_in_a_row_written_by_hand():
    batch = collated([TEXT, PICTURE])
    i = IGNORE
    assert batch.ids.tolist() == [[0, 11, 12, 1, 0, 3, 3, 21, 1, 0, 0, 0, 0, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0]]
    assert batch.segments.tolist() == [[1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0]]
    assert batch.targets.tolist() == [[i, 12, 1, i, i, i, 21, 1, i, i, i, i, i, i, i, i]]
    assert batch.image_positions.tolist() == [5, 6]
    assert batch.num_targets == {"language": 2, "multimodal": 2}
    assert batch.num_tokens == {"language": 4, "multimodal": 5}
    assert batch.num_images == 1
    assert batch.pack_numbers == (10,)
    assert batch.origins == ((TEXT.origin, PICTURE.origin),)
    assert batch.faults == ()


def test_dtypes():
    batch = collated([PICTURE])
    assert batch.ids.dtype == batch.positions.dtype == batch.targets.dtype == torch.int64
    assert batch.segments.dtype == torch.int32
    assert batch.image_positions.dtype == torch.int64
    assert batch.images.dtype == torch.uint8


def test_images_of_all_rows_in_reading_order():
    two = piece("q", [3, 3, 9, 3, 3, 1], "001001", image_starts=[0, 3], image_tokens=2)
    batch = collated([TEXT], [PICTURE, two])
    assert batch.ids.shape == (2, 16)
    assert batch.image_positions.tolist() == [16 + n for n in (1, 2, 5, 6, 8, 9)]
    assert batch.images.shape == (3, SIDE, SIDE, 3)
    assert [int(square[0, 0, 0]) for square in batch.images] == [1, 1, 2]
    assert (batch.ids.flatten()[batch.image_positions] == IMAGE).all()
    assert int((batch.ids == IMAGE).sum()) == len(batch.image_positions)


def test_images_of_several_squares():
    """Two images in a row: the first with two tiles beside the whole, the second without."""
    both = piece("v", [3, 3, 3, 3, 9, 1], "000011", image_starts=[0, 2], image_tokens=2)
    example = both.example
    assert example is not None
    first, second = example.images
    squares = np.stack([np.full((SIDE, SIDE, 3), n, dtype=np.uint8) for n in (7, 8, 9)])
    tiled = dataclasses.replace(
        both,
        example=dataclasses.replace(
            example, images=(dataclasses.replace(first, grid=(2, 1)), second)
        ),
        squares=(squares, both.squares[1]),
    )
    batch = collated([PICTURE, tiled])
    assert (batch.num_images, batch.num_squares) == (3, 5)
    assert batch.grids.tolist() == [[0, 0], [2, 1], [0, 0]]
    assert batch.image_tokens.tolist() == [2, 2, 2]
    assert [int(square[0, 0, 0]) for square in batch.images] == [1, 7, 8, 9, 2]
    assert [int(square[0, 0, 0]) for square in batch.whole_images] == [1, 7, 2]


def test_the_first_token_of_a_continued_piece_is_nobodys_target():
    batch = collated([TEXT, piece("c", [31, 32], "11")])
    assert batch.targets[0, 3].item() == IGNORE
    assert batch.targets[0, 4].item() == 32
    assert batch.num_targets["language"] == 3


def test_text_without_images():
    batch = collated([TEXT])
    assert batch.images.shape == (0, SIDE, SIDE, 3)
    assert batch.image_positions.shape == (0,)
    assert batch.ids.shape == (1, 8)


def test_modality_is_the_sources():
    part = piece("d", [5, 6, 7], "111", modality=Modality.multimodal)
    assert collated([part]).num_tokens == {"language": 0, "multimodal": 3}


def test_a_hole_keeps_its_place_as_padding():
    bad = hole(PICTURE)
    whole, holed = collated([TEXT, PICTURE, TEXT]), collated([TEXT, bad, TEXT])
    assert holed.ids.shape == whole.ids.shape
    assert holed.segments.tolist() == [[1] * 4 + [0] * 5 + [3] * 4 + [0] * 3]
    assert (holed.targets[0, 4:9] == IGNORE).all()
    assert holed.targets[0, 9:].tolist() == whole.targets[0, 9:].tolist()
    assert holed.num_tokens == {"language": 8, "multimodal": 0}
    assert holed.num_images == 0
    assert holed.faults == (bad.fault,)
    assert holed.pack_digests != whole.pack_digests
    assert holed.origins == whole.origins


def test_a_pack_of_holes_only():
    batch = collated([hole(TEXT)])
    assert int(batch.segments.sum()) == 0
    assert batch.num_targets == {"language": 0, "multimodal": 0}


def test_no_packs_give_one_blank_row():
    plan = MicroBatchPlan(step=1, micro=0, packs=(), num_slots=2)
    batch = collate(plan, [], image_token_id=IMAGE, image_side=SIDE)
    assert batch.ids.shape == (1, 8)
    assert (batch.targets == IGNORE).all()
    assert batch.pack_numbers == ()
    assert batch.pack_digests == ()


def test_digests_are_of_keys_ids_and_stored_bytes():
    assert collated([TEXT, PICTURE]).pack_digests == (
        pack_digest(
            10,
            [
                ("s:0.tar:t", TEXT.example.ids, []),
                ("s:0.tar:p", PICTURE.example.ids, [b"p0"]),
            ],
        ),
    )
    assert collated([hole(TEXT)]).pack_digests == (pack_digest(10, [("s:0.tar:t", None, [])]),)


def test_digests_do_not_depend_on_the_micro_batch():
    alone = [collated([TEXT]).pack_digests[0]]
    assert collated([TEXT], [PICTURE]).pack_digests[:1] == tuple(alone)


def test_a_piece_that_is_not_as_planned():
    ref = dataclasses.replace(PICTURE.ref, tokens=6, supervised=3)
    stale = dataclasses.replace(PICTURE, ref=ref)
    with pytest.raises(DataError, match=r"s:0\.tar:p: .*\(6, 3, 2, 1\), but \(5, 2, 2, 1\)"):
        collated([stale])


def tampered(ids) -> ReadPiece:
    example = dataclasses.replace(PICTURE.example, ids=np.array(ids, dtype=np.int32))
    return dataclasses.replace(PICTURE, example=example)


def test_placeholders_must_be_what_the_images_need():
    with pytest.raises(DataError, match=r"s:0\.tar:p: 1 image placeholders .* need 2"):
        collated([tampered([0, 3, 9, 21, 1])])
    with pytest.raises(DataError, match=r"3 image placeholders .* need 2"):
        collated([tampered([0, 3, 3, 3, 1])])
    with pytest.raises(DataError, match=r"2 image placeholders .* need 2, elsewhere"):
        collated([tampered([3, 3, 9, 21, 1])])
