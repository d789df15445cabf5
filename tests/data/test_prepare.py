from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from PIL import Image
from shard_makers import byte_encoder, png, prepare, source_config, write_tar

from vltrain.batch import Learn, Modality, RecordKind, Sample
from vltrain.data import shardjob
from vltrain.data.config import FaultConfig, SourceConfig
from vltrain.data.prepare import PrepareProgress, prepare_sources
from vltrain.data.reportchart import draw_report
from vltrain.data.sources import open_source
from vltrain.errors import ConfigError, DataError, FaultBudgetExceeded
from vltrain.processing.encode import Encoder, PieceSize


def captions(path: Path, texts: list[str], *, bad: int = 0) -> Path:
    members = []
    for i, text in enumerate(texts):
        image = b"no image" if i < bad else png()
        members += [(f"{path.stem}{i}.png", image), (f"{path.stem}{i}.txt", text.encode())]
    return write_tar(path, members)


def times(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.rglob("*.arrow")}


def test_counts_by_hand(tmp_path: Path) -> None:
    captions(tmp_path / "a.tar", ["dog", "", "a" * 60])  # 9 tokens; empty; 66 of at most 64
    captions(tmp_path / "b.tar", ["dog"], bad=1)
    (source,) = prepare({"s": source_config(tmp_path)}).sources
    assert source.totals["multimodal"] == {
        "samples": 1,
        "pieces": 1,
        "tokens": 1 + 4 + 3 + 1,
        "supervised": 4,
        "image_tokens": 4,
        "images": 1,
    }
    assert source.totals["language"]["samples"] == 0
    assert source.excluded == {"empty": 1, "too_long": 1, "not_an_image": 1}
    assert (source.shards, source.built_shards, source.samples) == (2, 2, 4)
    assert source.histogram == (0, 0, 0, 1)
    assert source.unreadable == 1


def test_long_texts_are_split_and_reported(tmp_path: Path) -> None:
    members = [("a.txt", b"x" * 100), ("b.txt", b"y"), ("b.txt2", b""), ("c.txt", b"y")]
    write_tar(tmp_path / "t.tar", [*members, ("a.txt", b"y"), ("README", b"")])
    config = source_config(tmp_path, kind=RecordKind.text, modality=Modality.language)
    report = prepare({"s": config})
    (source,) = report.sources
    assert source.totals["language"]["pieces"] == 2 + 3
    assert source.totals["language"]["tokens"] == 102 + 3 * 3
    assert (source.split, source.duplicate_keys, source.ignored) == (1, 1, 1)
    text = "\n".join(report.lines())
    assert "s: 4 language samples in 1 shards (1 made now), 111 tokens (0 of images)" in text
    for line in ("1 samples cut into several pieces", "1 duplicate keys", "1 duplicate contents"):
        assert line in text
    assert "tokens per piece: 2-3 3, 32-63 1, 64-127 1" in text


def test_what_is_fresh_is_kept_and_new_shards_extend(tmp_path: Path) -> None:
    captions(tmp_path / "a.tar", ["dog"])
    sources = {"s": source_config(tmp_path)}
    prepare(sources)
    before = times(tmp_path)
    assert len(before) == 2
    assert prepare(sources).sources[0].built_shards == 0
    assert times(tmp_path) == before
    captions(tmp_path / "b.tar", ["cat", "cow"])
    (source,) = prepare(sources).sources
    assert (source.built_shards, source.totals["multimodal"]["samples"]) == (1, 3)
    assert before.items() <= times(tmp_path).items()


def test_a_shard_that_is_gone_is_refused_until_prepare_forgets_it(tmp_path: Path, caplog) -> None:
    captions(tmp_path / "a.tar", ["dog"])
    shard = captions(tmp_path / "b.tar", ["cat"])
    sources = {"s": source_config(tmp_path)}
    prepare(sources)
    shard.unlink()
    with pytest.raises(DataError, match=r"1 shards that were indexed .* b\.tar\. Bring them back"):
        open_source("s", sources["s"])
    one = source_config(tmp_path / "a.tar")  # a named shard is all that this one means
    assert len(open_source("s", one).shards) == 1
    prepare(sources)
    assert "source s: no longer there, and forgotten: b.tar" in caplog.text
    assert [shard.name for shard in open_source("s", sources["s"]).shards] == ["a.tar"]


def test_a_touched_shard_keeps_its_token_table(tmp_path: Path) -> None:
    shard = captions(tmp_path / "a.tar", ["dog"])
    prepare({"s": source_config(tmp_path)})
    before = times(tmp_path)
    os.utime(shard, ns=(1, 1))
    assert prepare({"s": source_config(tmp_path)}).sources[0].built_shards == 1
    changed = {name for name, time in times(tmp_path).items() if before[name] != time}
    assert changed == {"a.tar.index.arrow"}


def test_another_encoder_makes_another_table_beside_the_first(tmp_path: Path) -> None:
    captions(tmp_path / "a.tar", ["dog"])
    prepare({"s": source_config(tmp_path)})
    prepare({"s": source_config(tmp_path)}, encoder=byte_encoder(sequence_length=32))
    assert len(list(tmp_path.glob(".vltrain/tokens-*/a.tar.tokens.arrow"))) == 2


def test_workers_make_the_same_files(tmp_path: Path) -> None:
    for side in ("one", "two"):
        for name in ("a", "b"):
            captions(tmp_path / side / f"{name}.tar", ["dog", "cat"])
    alone = prepare({"s": source_config(tmp_path / "one")})
    pooled = prepare({"s": source_config(tmp_path / "two")}, workers=2)
    assert pooled == alone
    one = sorted((tmp_path / "one").rglob("*.tokens.arrow"))
    two = sorted((tmp_path / "two").rglob("*.tokens.arrow"))
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


def test_what_the_system_refuses_is_a_message(tmp_path: Path, monkeypatch) -> None:
    captions(tmp_path / "a.tar", ["dog"])

    def full(*args: object, **settings: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shardjob, "build_index", full)
    with pytest.raises(DataError, match=r"a\.tar cannot be prepared: .*No space left.*make room"):
        prepare({"s": source_config(tmp_path)})


class DeadlyEncoder(Encoder):
    """Ends the process that measures, as the kernel does when memory runs out."""

    def measure(self, sample: Sample, *, learn: Learn | None = None) -> tuple[PieceSize, ...]:
        os._exit(1)


def test_a_killed_worker_is_an_error_not_a_hang(tmp_path: Path) -> None:
    for name in ("a", "b"):
        captions(tmp_path / f"{name}.tar", ["dog"])
    real = byte_encoder()
    encoder = DeadlyEncoder(real.tokenizer, real.geometry, real.rules)
    with pytest.raises(DataError, match="worker process of prepare was killed"):
        prepare({"s": source_config(tmp_path)}, encoder=encoder, workers=2)


def test_progress_is_told_after_every_shard(tmp_path: Path) -> None:
    for name in ("a", "b"):
        captions(tmp_path / f"{name}.tar", ["dog", "cat"])
    seen: list[PrepareProgress] = []
    prepare_sources(
        {"s": source_config(tmp_path)},
        encoder_for=lambda config: byte_encoder(),
        workers=0,
        faults=FaultConfig(),
        progress=seen.append,
    )
    assert [(p.done_shards, p.total_shards, p.samples, p.shard) for p in seen] == [
        (1, 2, 2, "a.tar"),
        (2, 2, 4, "b.tar"),
    ]
    size = (tmp_path / "a.tar").stat().st_size
    assert [(p.done_bytes, p.total_bytes) for p in seen] == [(size, 2 * size), (2 * size, 2 * size)]


class KilledAt(Encoder):
    """Ends its process, without a word, at one sample."""

    def measure(self, sample: Sample, *, learn: Learn | None = None) -> tuple[PieceSize, ...]:
        if sample.origin.key == "b1":
            os._exit(9)
        return Encoder.measure(self, sample, learn=learn)


def test_killed_in_the_middle_it_goes_on_where_it_was(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        captions(tmp_path / f"{name}.tar", ["dog", "cat", "cow"])
    sources, real = {"s": source_config(tmp_path)}, byte_encoder()
    child = os.fork()
    if not child:
        prepare(sources, encoder=KilledAt(real.tokenizer, real.geometry, real.rules))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    (tables,) = tmp_path.glob(".vltrain/tokens-*")
    assert [path.name for path in tables.iterdir()] == ["a.tar.tokens.arrow"]
    before = times(tmp_path)
    (source,) = prepare(sources).sources
    assert (source.built_shards, source.totals["multimodal"]["samples"]) == (2, 9)
    assert before.items() <= times(tmp_path).items()


def test_report_as_json_and_as_a_chart(tmp_path: Path) -> None:
    members = [("a.png", png(6, 40)), ("a.txt", b"dog"), ("b.png", png(70, 1)), ("b.txt", b"cat")]
    write_tar(tmp_path / "a.tar", [*members, ("c.png", b"none"), ("c.txt", b"cow")])
    report = prepare_sources(
        {"s": source_config(tmp_path)},
        encoder_for=lambda config: byte_encoder(),
        workers=0,
        faults=FaultConfig(),
        draw=draw_report,
    )
    (written,) = tmp_path.glob(".vltrain/tokens-*/report-s.json")
    content = json.loads(written.read_text())
    assert content == json.loads(json.dumps(report.sources[0].as_json()))
    assert content["image_sides"] == [0, 0, 0, 0, 0, 1, 1]
    assert content["excluded"] == {"not_an_image": 1}
    assert "  longer side of images, pixels: 32-63 1, 64-127 1" in report.lines()
    with Image.open(written.with_suffix(".png")) as chart:
        assert chart.size[0] > 600


def test_every_broken_shard_is_named_at_once(tmp_path: Path) -> None:
    captions(tmp_path / "a.tar", ["dog"])
    write_tar(tmp_path / "b.tar", [])
    (tmp_path / "c.tar").write_bytes(b"not a tar" * 100)
    whole = captions(tmp_path / "d.tar", ["dog"]).read_bytes()
    (tmp_path / "d.tar").write_bytes(whole[:700])
    with pytest.raises(DataError) as caught:
        prepare({"s": source_config(tmp_path)})
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    for line, words in zip(
        lines, ("b.tar is an empty", "c.tar is not a", "d.tar is trunc"), strict=True
    ):
        assert line.startswith("source 's': ")
        assert words in line


def test_above_the_budget_prepare_fails_with_the_list(tmp_path: Path) -> None:
    captions(tmp_path / "a.tar", ["dog"] * 4, bad=3)
    config = source_config(tmp_path)
    with pytest.raises(FaultBudgetExceeded) as caught:
        prepare({"s": config}, grace=2)
    message = str(caught.value)
    assert "source 's': 3 of 4 records cannot be used" in message
    assert "{'not_an_image': 3}" in message
    assert "s:a.tar:a0: not_an_image: .png:" in message
    (listed,) = tmp_path.glob(".vltrain/tokens-*/excluded-s.json")
    assert '"key": "a2"' in listed.read_text()
    assert not list(tmp_path.rglob("catalog.json"))
    prepare({"s": config}, grace=3)


def test_sources_over_the_same_shards_share_their_work(tmp_path: Path) -> None:
    captions(tmp_path / "a.tar", ["dog"])
    words = source_config(tmp_path, kind=RecordKind.text, modality=Modality.language)
    again = SourceConfig(**{**vars(words), "path": f"{tmp_path}/../{tmp_path.name}/*.tar"})
    seen: list[PrepareProgress] = []
    report = prepare_sources(
        {"pictures": source_config(tmp_path), "words": words, "again": again},
        encoder_for=lambda config: byte_encoder(),
        workers=0,
        faults=FaultConfig(),
        progress=seen.append,
    )
    assert len(seen) == 1
    assert [s.totals[s.modality.value]["tokens"] for s in report.sources] == [9, 5, 5]


def test_two_shards_of_one_name_need_two_index_folders(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        captions(tmp_path / folder / "a.tar", ["dog"])
    shared = str(tmp_path / "index")
    sources = {name: source_config(tmp_path / name, index_dir=shared) for name in ("x", "y")}
    with pytest.raises(DataError, match=r"would share the index .*different index_dir"):
        prepare(sources)


def test_unknown_field(tmp_path: Path) -> None:
    config = source_config(tmp_path)
    config.fields["img"] = "png"
    with pytest.raises(ConfigError, match=r"source 's': fields \['img'\]"):
        prepare({"s": config})


def test_names_in_a_shard_cannot_leave_it(tmp_path: Path) -> None:
    """A sample's key is a word and never a path: nothing is unpacked."""
    folder = tmp_path / "deep/shards"
    folder.mkdir(parents=True)
    names = ("../../up", "/" + str(tmp_path).strip("/") + "/absolute", "deep/../../../side")
    members = [(f"{name}.{kind}", content) for name in names for kind, content in CONTENTS.items()]
    write_tar(folder / "a.tar", members)
    (source,) = prepare({"s": source_config(folder)}).sources
    assert source.totals["multimodal"]["samples"] == len(names)
    outside = [p for p in tmp_path.rglob("*") if not p.is_relative_to(folder)]
    assert outside == [folder.parent]


CONTENTS = {"png": png(), "txt": b"dog"}
