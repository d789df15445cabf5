"""The command that proposes a source: YAML for tars that fit, a plain refusal for others."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launch" / "propose_source.py"), *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, cwd=cwd
    )


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_yaml_to_paste(tmp_path: Path) -> None:
    write_tar(tmp_path / "My Books" / "x.000.tar", {"a.txt": b"a dog", "b.txt": b"a cat"})
    result = run(f"{tmp_path}/My Books/x.{{000..000}}.tar")
    assert result.returncode == 0, result.stderr
    assert "# reads 2 of the first 2 records" in result.stdout
    path = f"{tmp_path}/My Books/x.{{000..000}}.tar"
    source = {"path": path, "kind": "text", "modality": "language"}
    assert yaml.safe_load(result.stdout) == {"sources": {"x": source}}
    assert yaml.safe_load(run(str(tmp_path / "My Books"), "b").stdout)["sources"].keys() == {"b"}


def test_a_name_and_a_path_that_yaml_would_misread(tmp_path: Path) -> None:
    """As img2dataset names its shards."""
    write_tar(tmp_path / "00000.tar", {"a.txt": b"a dog"})
    for path, name in (("00000.tar", "source_00000"), ("{00000..00000}.tar", "source")):
        found = yaml.safe_load(run(path, cwd=tmp_path).stdout)["sources"]
        assert found == {name: {"path": path, "kind": "text", "modality": "language"}}


def test_refusals(tmp_path: Path) -> None:
    write_tar(tmp_path / "s" / "a.tar", {"a.wav": b"\xff\xfe"})
    for words, message in (
        ([], "error: the following arguments are required: PATH"),
        ([str(tmp_path / "s")], "error: no kind reads the first records of"),
        (["http://h/x-*.tar"], "error: http://h/x-*.tar: a store is not listed"),
        ([str(tmp_path / "none")], "error: source 'none': 1 of 1 shard names match no file"),
    ):
        result = run(*words)
        assert result.returncode == 2
        assert message in result.stderr
        assert "Traceback" not in result.stderr
    (tmp_path / "s" / "b.tar.gz").write_bytes(b"\x1f\x8b")
    assert "gunzip -k" in run(str(tmp_path / "s")).stderr
