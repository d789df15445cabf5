from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoint_samples import saved

from vltrain.checkpoint.manifest import damaged_files, digest_file, read_manifest
from vltrain.errors import CheckpointError


def edited(directory: Path, **changes: Any) -> Path:
    """A checkpoint whose manifest says something else; None removes a key."""
    path = saved(directory, 10).path(10)
    values = json.loads((path / "manifest.json").read_text())
    values |= {"digest": None} | changes  # without its digest, so that the change itself is met
    kept = {key: value for key, value in values.items() if value is not None or key == "cursor"}
    (path / "manifest.json").write_text(json.dumps(kept))
    return path


def test_the_schema_has_what_was_promised(tmp_path: Path) -> None:
    values = json.loads((saved(tmp_path, 10).path(10) / "manifest.json").read_text())
    assert set(values) == {
        *("schema", "created", "step", "finished", "stage", "run", "versions", "config_digest"),
        *("model_digest", "tokenizer_digest", "image_token_id", "geometry", "recipe_digest"),
        *("seed", "cursor", "chain_head", "counters", "parts", "params", "files", "world", "rng"),
        *("digest", "metrics", "recipe", "data", "lineage", "health"),
    }
    assert values["schema"] == 1
    assert set(values["parts"]["adaptor"]) == {"trained", "path", "digest", "tensors"}
    assert set(values["files"][0]) == {"path", "bytes", "xxh3_128"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"step": None}, "manifest.json is damaged: .*'step'"),
        ({"colour": 1}, "manifest.json is damaged: .*'colour'"),
        ({"parts": None}, "damaged in 'parts'"),
        ({"health": {"updates": 1}}, "manifest.json is damaged: .*'skipped_lately'"),
        (
            {"health": {"updates": 1, "skipped_lately": 0, "left": [[1]]}},
            "manifest.json is damaged",
        ),
        ({"params": {"w": {"shape": [1]}}}, "damaged in 'params'"),
        ({"schema": 7}, "has schema 7; this version of vltrain reads schema 1"),
    ],
)
def test_a_damaged_manifest_is_named(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=words):
        read_manifest(edited(tmp_path, **changes))


@pytest.mark.parametrize("name", ["../step-1/w", "/etc/passwd", "a/b", "..", "", 7])
def test_a_manifest_names_only_files_beside_itself(name: Any, tmp_path: Path) -> None:
    words = "names the file .*: expected plain names"
    with pytest.raises(CheckpointError, match=words):
        read_manifest(edited(tmp_path, files=[{"path": name, "bytes": 1, "xxh3_128": "0"}]))
    part = {"trained": False, "path": "p", "digest": "d", "tensors": name}
    with pytest.raises(CheckpointError, match=words):
        read_manifest(edited(tmp_path, parts={"language": part}))


def test_rows_name_only_files_of_the_manifest(tmp_path: Path) -> None:
    path = edited(tmp_path)
    rows = json.loads((path / "fragments.json").read_text())
    rows[0][0] = "../else.safetensors"
    (path / "fragments.json").write_text(json.dumps(rows))
    values = json.loads((path / "manifest.json").read_text())
    for record in values["files"]:
        record["bytes"] = (path / record["path"]).stat().st_size
    (path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"does not list: '\.\./else\.safetensors'"):
        read_manifest(path)


def test_one_changed_character_in_a_manifest_is_found(tmp_path: Path) -> None:
    path = saved(tmp_path, 10).path(10)
    text = (path / "manifest.json").read_text()
    assert '"chain_head": "ab"' in text
    (path / "manifest.json").write_text(text.replace('"chain_head": "ab"', '"chain_head": "aa"'))
    with pytest.raises(CheckpointError, match="its own digest does not fit its content"):
        read_manifest(path)


def test_damaged_rows_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path, 10).path(10)
    rows = json.loads((path / "fragments.json").read_text())
    text = json.dumps([row[:-1] for row in rows])
    size = (path / "fragments.json").stat().st_size
    (path / "fragments.json").write_text(text.ljust(size))
    with pytest.raises(CheckpointError, match=r"fragments\.json is damaged"):
        read_manifest(path)


def test_ranks_share_the_digests(tmp_path: Path) -> None:
    path = saved(tmp_path, 10).path(10)
    manifest = read_manifest(path)
    for record in manifest.files:
        file = path / record.path
        file.write_bytes(bytes(record.bytes))
    everyone = [damaged_files(path, manifest, share=r, shares=2) for r in range(2)]
    assert all(everyone)
    found = [name for own in everyone for name in own]
    assert sorted(found) == sorted(f.path for f in manifest.files)
    (tmp_path / "known").write_bytes(b"abc")
    assert digest_file(tmp_path / "known") == "06b05ab6733a618578af5f94892f3950"
