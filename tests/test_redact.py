"""Planted secrets do not leave the process."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vltrain.assemble.recording import Recording
from vltrain.logs import Redacting
from vltrain.redact import redact, redacted_errors
from vltrain.runconfig import to_yaml

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://user:hunter2@host/data.tar", "https://REDACTED@host/data.tar"),
        ("https://ghp_abcdef@github.com/x", "https://REDACTED@github.com/x"),
        ("s3://bucket/a@b.tar", "s3://bucket/a@b.tar"),
        ("gs://h/x?X-Goog-Signature=ab12&n=1", "gs://h/x?X-Goog-Signature=REDACTED&n=1"),
        ("http://h/x?password=ab12", "http://h/x?password=REDACTED"),
        ("http://h/x?X-Amz-Signature=ab12&n=1", "http://h/x?X-Amz-Signature=REDACTED&n=1"),
        ("http://h/x?n=1&sig=ab%2F12 failed", "http://h/x?n=1&sig=REDACTED failed"),
        ("  api_key: abc def", "  api_key: 'REDACTED'"),
        ("aws_secret_key: x", "aws_secret_key: 'REDACTED'"),
        ("  password: null", "  password: null"),
        ("+engine.extra.api_key=abc", "+engine.extra.api_key='REDACTED'"),
        ("  image_token: <image>", "  image_token: <image>"),
        ("  tokenizer: runs/x", "  tokenizer: runs/x"),
        ("  tokens_per_image: 576", "  tokens_per_image: 576"),
    ],
)
def test_what_is_hidden(text: str, clean: str) -> None:
    assert redact(text) == clean


def test_secrets_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("SOME_TOKEN", "true")
    assert redact(f"header: {KEY}; true") == "header: REDACTED; true"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountName=a;AccountKey=b+c/d==")
    assert redact("with AccountName=a;AccountKey=b+c/d==.") == "with REDACTED."
    assert redact("?with=AccountName%3Da%3BAccountKey%3Db%2Bc%2Fd%3D%3D") == "?with=REDACTED"


def test_standard_error_hides_them_whoever_writes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOME_TOKEN", KEY)
    before = sys.stderr
    with redacted_errors():
        print(f"a library says {KEY}", file=sys.stderr)
        print(f"one line with {KEY[:20]}", end="", file=sys.stderr)
        print(f"{KEY[20:]} in two pieces\nand the rest: {KEY}", end="", file=sys.stderr)
    assert sys.stderr is before
    said = capsys.readouterr().err
    assert said == (
        "a library says REDACTED\none line with REDACTED in two pieces\nand the rest: REDACTED"
    )


def test_a_traceback_that_the_interpreter_prints_hides_them() -> None:
    script = (
        "from vltrain.redact import redacted_errors\n"
        "import os\n"
        "with redacted_errors():\n"
        "    raise ValueError('refused ' + os.environ['SOME_TOKEN'])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "SOME_TOKEN": KEY},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.endswith("ValueError: refused REDACTED\n")


def test_logs_hide_them_in_arguments_and_tracebacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    try:
        raise ValueError(f"refused {KEY}")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("vltrain", logging.ERROR, "f", 1, "sent %s", (KEY,), info)
    line = Redacting("%(message)s").format(record)
    assert line.startswith("sent REDACTED\n")
    assert "refused REDACTED" in line
    assert KEY not in line


def test_neither_files_nor_wandb_see_them(
    compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict] = []

    class Sink:
        run_id = "w1"

        def __init__(self, *args: object, config: dict, **others: object) -> None:
            sent.append(config)

        def close(self) -> None: ...

    monkeypatch.setattr("vltrain.assemble.recording.WandbSink", Sink)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    config = compose(
        "stage=1",
        "+experiment=demo",
        f"run.root={tmp_path}",
        "data.sources.emoji.path='https://user:hunter2@host/emoji.tar'",
        f"+engine.extra={{api_key: {KEY}x, other: {KEY}}}",
    )
    config.run_dir.mkdir(parents=True)
    recording = Recording(config, resumed=None, peak_flops=None)
    recording.close()
    written = (config.run_dir / "config.yaml").read_text()
    for text in (written, str(sent), to_yaml(config)):
        assert KEY not in text
        assert "hunter2" not in text
        assert "https://REDACTED@host/emoji.tar" in text
    assert yaml.safe_load(written)["engine"]["extra"] == {
        "api_key": "REDACTED",
        "other": "REDACTED",
    }
