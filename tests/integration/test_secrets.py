"""Secrets planted where people put them: nothing that a run writes or says holds one of them,
wandb's own files included."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from launching import DEMO, Finished, Stages, launch, python

IN_ENVIRONMENT = {
    "WANDB_API_KEY": "0123456789abcdefPLANTED0123456789abcdef01",
    "HF_TOKEN": "hf_PLANTEDaBcDeFgHiJkLmNoP",
    "AWS_SECRET_ACCESS_KEY": "PLANTED/aws+secret/with/signs==",
    "AZURE_STORAGE_CONNECTION_STRING": "AccountName=a;AccountKey=PLANTEDazure==",
}
URL = "https://user:PLANTEDpassword@store.invalid/text?X-Amz-Signature=PLANTEDsignature&part=1"
PLANTED = re.compile(rb"PLANTED[\w+/=]*")


def test_nothing_that_a_run_writes_holds_a_secret(stages: Stages, workspace: Path) -> None:
    run = workspace / "runs/demo/secrets"
    ended = launch(
        python(),
        *("stage=1", *DEMO, "run.name=secrets", "optim.steps=2", "checkpoint.every_steps=1"),
        # A source that only evaluation opens, a token among words that wandb shows to everybody,
        # and a setting that is called a secret.
        f"data.held_out.text.path='{URL}'",
        f"metrics.wandb.tags=[{IN_ENVIRONMENT['HF_TOKEN']},shown]",
        "+engine.extra.vltrain_api_key=PLANTEDsetting",
        cwd=workspace,
        added={**IN_ENVIRONMENT, "WANDB_MODE": "offline"},
    )
    assert ended.code == 0, ended.err
    files = [path for path in run.rglob("*") if path.is_file()]
    found = {
        str(path.relative_to(run)): PLANTED.findall(content)
        for path in files
        if PLANTED.search(content := path.read_bytes())
    }
    assert found == {}
    assert "PLANTED" not in ended.out + ended.err
    # The search sees what is there, in the checkpoints and in wandb's own record and logs too.
    names = {path.name for path in files}
    assert {"config.yaml", "manifest.json", "steps.jsonl", "debug.log"} <= names
    (record,) = run.glob("wandb/offline-run-*/run-*.wandb")
    assert b"https://REDACTED@store.invalid" in record.read_bytes()
    for config in (run / "config.yaml", run / "checkpoints/step-00000002/config.yaml"):
        assert "https://REDACTED@store.invalid/text?X-Amz-Signature=REDACTED&part=1" in (
            config.read_text()
        )


def test_no_complaint_repeats_a_secret(
    refused: Callable[..., str], in_process: Callable[..., Finished], stages: Stages
) -> None:
    """Of ours, and of Hydra's, which shows the value that it cannot take."""
    said = refused("stage=1", *DEMO, f"data.sources.emoji.path='{URL}'")
    assert "PLANTED" not in said
    assert "REDACTED@store.invalid" in said
    ended = in_process("stage=1", *DEMO, f"optim.steps='{URL}'")
    assert ended.code == 1
    assert "PLANTED" not in ended.err
    assert "Value 'https://REDACTED@store.invalid" in ended.err
