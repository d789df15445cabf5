from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from shard_makers import byte_encoder, png, prepare, source_config, write_tar

from vltrain.batch import Modality, Origin, RecordKind
from vltrain.data.config import KeyRule
from vltrain.data.pieces import PieceReader, PieceTable, check_modalities
from vltrain.data.sources import Source, open_source
from vltrain.errors import DataError
from vltrain.processing.encode import Encoder

TALK = b'{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "B"}]}'
WITH, WITHOUT = TALK % b"<image>A", TALK % b"A"


def talks(folder: Path) -> None:
    """Three shards: mixed, language only, multimodal only; one record of the first is bad."""
    write_tar(
        folder / "a.tar",
        [
            ("0.json", WITHOUT),
            ("1.json", WITH),
            ("1.0.png", png(1)),
            ("2.json", b"{"),
            ("3.json", WITH),
            ("3.0.png", png(3)),
            ("4.json", WITHOUT),
        ],
    )
    write_tar(folder / "b.tar", [("5.json", WITHOUT)])
    write_tar(folder / "c.tar", [("6.json", WITH), ("6.0.png", png(6))])


def opened(
    folder: Path, modality: Modality, *, kind: RecordKind = RecordKind.conversation
) -> tuple[Source, PieceTable]:
    config = source_config(folder, kind=kind, modality=modality)
    prepare({modality.value: config})
    source = open_source(modality.value, config)
    return source, PieceTable(source, encoder_digest=byte_encoder().digest)


def keys(source: Source, table: PieceTable, encoder: Encoder | None = None) -> list[str]:
    reader = PieceReader([source], tables=[table], encoder=encoder or byte_encoder())
    return [reader.origin(0, piece).key for piece in range(table.num_pieces)]


def test_a_leaf_draws_its_modality(tmp_path: Path) -> None:
    talks(tmp_path)
    source, table = opened(tmp_path, Modality.multimodal)
    assert (table.shard_samples, table.other_samples) == ([2, 0, 1], [2, 1, 0])
    assert (table.num_samples, table.num_pieces, table.totals["images"]) == (3, 3, 3)
    assert keys(source, table) == ["1", "3", "6"]
    # b.tar has none: the numbers of c.tar's pieces follow those of a.tar.
    shards, rows = table.locate_samples(np.array([2, 0, 1, 2]))
    assert (shards.tolist(), rows.tolist()) == ([2, 0, 0, 2], [0, 1, 3, 0])
    assert [row.reason for rows in table.excluded for row in rows] == ["bad_json"]
    source, table = opened(tmp_path, Modality.language)
    assert table.shard_samples == [2, 1, 0]
    assert keys(source, table) == ["0", "4", "5"]


def test_pieces_of_samples_over_shards(tmp_path: Path) -> None:
    long, short = b"x" * 100, b"y"
    write_tar(tmp_path / "a.tar", [("0.txt", short), ("1.txt", long)])
    write_tar(tmp_path / "b.tar", [("2.txt", long), ("3.txt", b"yy")])
    _, table = opened(tmp_path, Modality.language, kind=RecordKind.text)
    assert (table.num_samples, table.num_pieces) == (4, 6)
    every = table.pieces_of_samples(0, 4)
    assert every.piece.tolist() == [0, 1, 2, 3, 4, 5]
    assert every.sample.tolist() == [0, 1, 1, 2, 2, 3]
    assert every.tokens[[0, 5]].tolist() == [3, 4]
    assert every.tokens[1:3].sum() == every.tokens[3:5].sum() == 102
    assert every.tokens.max() <= 64
    for first in range(4):
        for count in range(1, 5 - first):
            part = table.pieces_of_samples(first, count)
            kept = (every.sample >= first) & (every.sample < first + count)
            for name in ("piece", "sample", "tokens", "supervised", "image_tokens", "images"):
                np.testing.assert_array_equal(getattr(part, name), getattr(every, name)[kept])
    assert (every.piece.dtype, every.tokens.dtype) == (np.int64, np.int32)


def test_a_piece_is_read_as_measured(tmp_path: Path) -> None:
    talks(tmp_path)
    source, table = opened(tmp_path, Modality.multimodal)
    reader = PieceReader([source], tables=[table], encoder=byte_encoder())
    example = reader.read_piece(0, 1)
    assert example.origin == Origin(source="multimodal", shard="a.tar", key="3")
    columns = table.pieces_of_samples(1, 1)
    assert len(example.ids) == columns.tokens[0]
    assert example.num_supervised == columns.supervised[0]
    assert [(i.data, i.width, i.member) for i in example.images] == [(png(3), 3, "0.png")]
    copy = pickle.loads(pickle.dumps(reader))  # noqa: S301
    np.testing.assert_array_equal(copy.read_piece(0, 1).ids, example.ids)


def test_parts_of_a_long_document_join_to_the_whole(tmp_path: Path) -> None:
    body = b'{"texts": ["%s", null, "%s"], "images": [null, "0.png", null]}' % (
        b"a" * 50,
        b"b" * 50,
    )
    write_tar(tmp_path / "a.tar", [("0.json", body), ("0.0.png", png())])
    source, table = opened(tmp_path, Modality.multimodal, kind=RecordKind.interleaved)
    reader = PieceReader([source], tables=[table], encoder=byte_encoder())
    assert (table.num_samples, table.num_pieces) == (1, 2)
    parts = [reader.read_piece(0, piece) for piece in range(2)]
    assert sum(len(part.ids) for part in parts) == 1 + 50 + 4 + 50 + 1
    assert sum(len(part.images) for part in parts) == 1
    assert [len(image.data) for part in parts for image in part.images] == [len(png())]


def test_digest_names_content_and_encoding_not_place(tmp_path: Path) -> None:
    talks(tmp_path / "x")
    talks(tmp_path / "y")
    _, first = opened(tmp_path / "x", Modality.language)
    _, second = opened(tmp_path / "y", Modality.language)
    _, other = opened(tmp_path / "y", Modality.multimodal)
    assert first.digest == second.digest != other.digest
    write_tar(tmp_path / "y" / "d.tar", [("7.json", WITHOUT)])
    assert opened(tmp_path / "y", Modality.language)[1].digest != first.digest


def test_absent_and_stale_tables_name_the_command(tmp_path: Path) -> None:
    talks(tmp_path)
    config = source_config(tmp_path, kind=RecordKind.conversation)
    with pytest.raises(DataError, match=r"a\.tar has no index.*launch/prepare\.py"):
        open_source("s", config)
    prepare({"s": config})
    source = open_source("s", config)
    with pytest.raises(DataError, match=r"token table of .*a\.tar is absent.*launch/prepare\.py"):
        PieceTable(source, encoder_digest="another")
    write_tar(tmp_path / "a.tar", [("0.json", WITHOUT)])
    with pytest.raises(DataError, match=r"index of .*a\.tar is stale.*launch/prepare\.py"):
        open_source("s", config)
    prepare({"s": config}, encoder=byte_encoder(sequence_length=32))
    source = open_source("s", config)
    with pytest.raises(DataError, match=r"token table of .*a\.tar is stale"):
        PieceTable(source, encoder_digest=byte_encoder().digest)


def test_a_new_shard_must_be_prepared(tmp_path: Path) -> None:
    talks(tmp_path)
    opened(tmp_path, Modality.language)
    write_tar(tmp_path / "d.tar", [("7.json", WITHOUT)])
    with pytest.raises(DataError, match=r"d\.tar has no index"):
        open_source("s", source_config(tmp_path))


def test_a_leaf_that_draws_nothing_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("0.json", WITHOUT), ("1.json", b"{")])
    with pytest.raises(DataError, match="'multimodal' does not fit its shards"):
        opened(tmp_path, Modality.multimodal)
    opened(tmp_path, Modality.language)  # which makes the tables of both
    config = source_config(tmp_path, kind=RecordKind.conversation)
    source = open_source("multimodal", config)
    with pytest.raises(DataError, match="'multimodal' draws nothing: its 1 shards hold 1 language"):
        PieceTable(source, encoder_digest=byte_encoder().digest)


def test_a_shard_that_changes_under_a_reader_ends_the_run(tmp_path: Path) -> None:
    talks(tmp_path)
    source, table = opened(tmp_path, Modality.language)
    reader = PieceReader([source], tables=[table], encoder=byte_encoder())
    reader.origin(0, 0)
    os.utime(tmp_path / "a.tar", ns=(1, 1))
    with pytest.raises(DataError, match=r"a\.tar is stale"):
        reader.read_piece(0, 0)
    reader.read_piece(0, 2)
    os.truncate(tmp_path / "b.tar", 512)
    with pytest.raises(DataError, match=r"b\.tar ended while it was read.*gave 0 bytes"):
        reader.read_piece(0, 2)


def test_an_index_that_was_made_anew_under_a_reader_ends_the_run(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("0.txt", b"a"), ("0.x.txt", b"b")])
    source, _ = opened(tmp_path, Modality.language, kind=RecordKind.text)
    other = source_config(tmp_path, kind=RecordKind.text, modality=Modality.language)
    other.keys = KeyRule.last_dot  # two records where there was one
    prepare({"s": other})
    with pytest.raises(DataError, match=r"a\.tar\.index\.arrow was made anew, with keys=last_dot"):
        source.index(0)


def test_a_table_that_does_not_fit_the_encoding_ends_the_run(tmp_path: Path) -> None:
    talks(tmp_path)
    source, table = opened(tmp_path, Modality.language)
    real = byte_encoder()

    class Shorter(Encoder):
        def part(self, example, *, start, tokens):
            return super().part(example, start=0, tokens=tokens - 1)

    shorter = Shorter(real.tokenizer, real.geometry, real.rules)
    reader = PieceReader([source], tables=[table], encoder=shorter)
    with pytest.raises(DataError, match=r"language:a\.tar:0: the token table says"):
        reader.read_piece(0, 0)


def test_records_of_the_other_modality_must_be_drawn_by_someone(tmp_path: Path) -> None:
    talks(tmp_path)
    _, language = opened(tmp_path, Modality.language)
    _, multimodal = opened(tmp_path, Modality.multimodal)
    check_modalities([language, multimodal])
    with pytest.raises(DataError) as caught:
        check_modalities([language])
    message = str(caught.value)
    assert "source 'language' draws 3 language samples" in message
    assert "2 of its shards hold 3 multimodal samples that no source draws" in message
    assert "modality=multimodal" in message


def test_a_long_document_is_encoded_once_for_all_its_pieces(tmp_path: Path, monkeypatch) -> None:
    write_tar(tmp_path / "a.tar", [("0.txt", ("one line of text\n" * 400).encode())])
    source, table = opened(tmp_path, Modality.language, kind=RecordKind.text)
    assert table.num_pieces > 3
    reader = PieceReader([source], tables=[table], encoder=byte_encoder())
    encoded = []
    encode = Encoder.encode
    monkeypatch.setattr(
        Encoder,
        "encode",
        lambda self, s, **more: encoded.append(s.origin) or encode(self, s, **more),
    )
    pieces = [reader.read_piece(0, number) for number in range(table.num_pieces)]
    assert len(encoded) == 1
    assert sum(len(piece.ids) for piece in pieces) == table.totals["tokens"]
