"""The command line of make_data: a line per set, skipped when unchanged, plain errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launch" / "make_data.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_demo_prints_a_line_per_set_and_skips_the_second_time(tmp_path: Path) -> None:
    words = ("demo", str(tmp_path), "--only", "digits_qa", "ocr_lines", "--limit", "2")
    first = run(*words)
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert lines[0].startswith("digits_qa ")
    assert "train 2, held_out 2" in lines[0]
    assert lines[1].startswith("ocr_lines (synthetic) ")
    assert "unchanged" not in first.stdout
    assert run(*words).stdout.count("unchanged") == 2


def test_boxes_are_a_group_of_their_own(tmp_path: Path) -> None:
    written = run("boxes", str(tmp_path), "--limit", "2")
    assert written.returncode == 0, written.stderr
    assert written.stdout.splitlines()[0].startswith("easy_vqa_boxes ")
    assert (tmp_path / "easy_vqa_boxes/train/easy_vqa_boxes-000000.tar").is_file()
    refused = run("boxes", str(tmp_path), "--only", "photos")
    assert refused.returncode == 2
    assert "is called photos; the choices are easy_vqa_boxes" in refused.stderr


def test_unknown_set(tmp_path: Path) -> None:
    result = run("demo", str(tmp_path), "--only", "digit_qa")
    assert result.returncode == 2
    assert "error: no demo data set is called digit_qa; the choices are emoji_caption," in (
        result.stderr
    )
    assert "Traceback" not in result.stderr
