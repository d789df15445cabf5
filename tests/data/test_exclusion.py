"""From a ledger to a list, and from the list to tables, pieces and the recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shard_makers import byte_encoder, prepare, source_config, write_tar

from vltrain.batch import Fault, Modality, Origin, RecordKind
from vltrain.data.config import SourceConfig
from vltrain.data.exclusion import read_exclusions, write_exclusions
from vltrain.data.faults import Ledger
from vltrain.data.pieces import PieceReader, PieceTable
from vltrain.data.sources import open_source
from vltrain.errors import DataError


def fault(shard: str, key: str, *, source: str = "s") -> Fault:
    origin = Origin(source=source, shard=shard, key=key)
    return Fault(origin=origin, reason="truncated", detail="cut", action="hole")


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts(folder: Path) -> SourceConfig:
    for shard in ("a", "b"):
        write_tar(folder / f"{shard}.tar", [(f"{n}.txt", b"%d" % n * (n + 1)) for n in range(4)])
    return source_config(folder, kind=RecordKind.text, modality=Modality.language)


def tables(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*.tokens.arrow")}


def test_ledgers_become_lists(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append([fault("b.tar", "é"), fault("a.tar", "9"), fault("a.tar", "9")], step=1)
    ledger.append([fault("x.tar", "1", source="t")], step=2)
    with ledger.path.open("a") as stream:
        stream.write('{"schema": 1, "torn')
    written = write_exclusions([ledger.path], tmp_path / "lists")
    path = tmp_path / "lists" / "s.jsonl"
    assert written == {"s": (path, 2), "t": (tmp_path / "lists" / "t.jsonl", 1)}
    assert lines(path) == [
        {"shard": "a.tar", "key": "9", "reason": "truncated"},
        {"shard": "b.tar", "key": "é", "reason": "truncated"},
    ]
    first = read_exclusions(str(path))
    assert (len(first), first.keys["b.tar"]) == (2, {"é"})

    later = Ledger(tmp_path / "later.jsonl")
    later.append([fault("a.tar", "3")], step=1)
    assert write_exclusions([later.path], tmp_path / "lists") == {"s": (path, 3)}
    assert read_exclusions(str(path)).digest != first.digest
    assert (read_exclusions(None).digest, len(read_exclusions(None))) == ("", 0)


def test_keys_with_other_line_separators(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append([fault("a.tar", "x\u2028y"), fault("a.tar", "z")], step=1)
    ((path, records),) = write_exclusions([ledger.path], tmp_path / "lists").values()
    assert records == 2
    path.write_text(path.read_text(encoding="utf-8").rstrip("\n"), encoding="utf-8")  # by hand
    assert read_exclusions(str(path)).keys == {"a.tar": {"x\u2028y", "z"}}


def test_a_folder_for_lists_that_cannot_be_made(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append([fault("a.tar", "1")], step=1)
    with pytest.raises(
        DataError, match=r"list .*ledger\.jsonl/s\.jsonl cannot be written: .*exists"
    ):
        write_exclusions([ledger.path], ledger.path)


@pytest.mark.parametrize(
    "text",
    ["{", '{"shard": 1, "key": "1", "reason": "r"}', "[]\n", '{"shard": "a.tar", "key": "1"}\n'],
)
def test_what_is_no_list(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"s\.jsonl:1: each row of this exclusion list is"):
        read_exclusions(str(tmp_path / "s.jsonl"))
    with pytest.raises(DataError, match=r"the exclusion list .*none.jsonl cannot be read"):
        read_exclusions(str(tmp_path / "none.jsonl"))


def test_a_ledger_of_another_version(tmp_path: Path) -> None:
    row = {"schema": 9, "source": "s", "shard": "a", "key": "b", "reason": "c"}
    (tmp_path / "ledger.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="row has schema 9, this version reads 1"):
        write_exclusions([tmp_path / "ledger.jsonl"], tmp_path)


def test_prepare_leaves_out_what_is_listed_and_tokenises_nothing_again(tmp_path: Path) -> None:
    whole = texts(tmp_path / "s")
    prepare({"s": whole})
    before = tables(tmp_path)
    rows = [("a.tar", "1"), ("a.tar", "3"), ("a.tar", "none")]
    (tmp_path / "s.jsonl").write_text(
        "".join(
            json.dumps({"shard": shard, "key": key, "reason": "x"}) + "\n" for shard, key in rows
        )
    )
    less = SourceConfig(**{**vars(whole), "exclude": str(tmp_path / "s.jsonl")})
    (report,) = prepare({"s": less}, grace=0).sources  # what is listed is not held to the budget
    assert report.excluded == {"listed": 2}
    assert "  1 rows of the exclusion list that name no record" in report.lines()
    # One token for a byte: 1 + n + 1 of each of 8 texts of 1 to 4 bytes, less those of 2 and 4.
    assert report.totals["language"]["tokens"] == 2 * (3 + 4 + 5 + 6) - (4 + 6)
    assert before.items() <= tables(tmp_path).items()
    assert prepare({"s": less}).sources[0].built_shards == 0

    encoder = byte_encoder()
    source, all_of_it = open_source("s", less), open_source("s", whole)
    table = PieceTable(source, encoder_digest=encoder.digest)
    assert table.digest != PieceTable(all_of_it, encoder_digest=encoder.digest).digest
    reader = PieceReader([source], tables=[table], encoder=encoder)
    origins = [reader.origin(0, piece) for piece in range(table.num_pieces)]
    assert [f"{o.shard}:{o.key}" for o in origins] == [
        *("a.tar:0", "a.tar:2"),
        *("b.tar:0", "b.tar:1", "b.tar:2", "b.tar:3"),
    ]
    assert len(reader.read_piece(0, 1).ids) == 1 + 3 + 1


def test_a_record_that_is_bad_anyway_keeps_its_reason(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("0.txt", b""), ("1.txt", b"x"), ("2.txt", b"y")])
    (tmp_path / "s.jsonl").write_text('{"shard": "a.tar", "key": "0", "reason": "x"}\n')
    config = source_config(tmp_path, kind=RecordKind.text, modality=Modality.language)
    config.exclude = str(tmp_path / "s.jsonl")
    (report,) = prepare({"s": config}).sources
    assert report.excluded == {"empty": 1}
    assert report.unmatched == 0


def test_a_list_that_names_everything_is_obeyed(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("0.txt", b"x")])
    (tmp_path / "s.jsonl").write_text('{"shard": "a.tar", "key": "0", "reason": "x"}\n')
    config = source_config(tmp_path, kind=RecordKind.text, modality=Modality.language)
    config.exclude = str(tmp_path / "s.jsonl")
    (report,) = prepare({"s": config}).sources
    assert report.totals["language"]["samples"] == 0
