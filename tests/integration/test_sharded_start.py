"""Under ZeRO-3 no rank ever holds the model: in every stage, new or resumed, each parameter is cut
up as soon as it is read, and the weights are those of every other ZeRO stage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from launching import DEMO, ROOT, Stages, launch, torchrun

WORDS = (
    *("metrics.wandb.enabled=false", "engine.bucket_elements=1000"),
    *("engine.param_persistence_threshold=0", "optim.steps=8"),
)


def test_no_rank_ever_holds_the_model(stages: Stages, workspace: Path) -> None:
    cases = {}
    for number, run in stages.runs.items():
        for zero_stage in (1, 3):
            for begin in ("new", "resumed"):
                name = f"sharded-{number}-{zero_stage}-{begin}"
                if begin == "resumed":
                    shutil.copytree(run, workspace / "runs/demo" / name)
                words = (f"stage={number}", *DEMO, *WORDS, f"engine.zero_stage={zero_stage}")
                cases[f"{number} {begin} {zero_stage}"] = [*words, f"run.name={name}"]
    ended = launch(
        torchrun("--nproc_per_node", "2"),
        *("sharded.json", json.dumps(cases)),
        cwd=workspace,
        script=str(ROOT / "tests/integration/sharded_start.py"),
    )
    assert ended.code == 0, ended.err
    found = json.loads((workspace / "sharded.json").read_text())
    for number in stages.runs:
        for begin in ("new", "resumed"):
            whole, shared = (found[f"{number} {begin} {z}"] for z in (1, 3))
            assert shared["masters"] == whole["masters"]
            # That the measure sees a model that is held whole:
            assert whole["loading"] >= whole["module"] + whole["towers"]
            assert whole["engine"] >= whole["module"]
            assert shared["module"] == whole["module"]
            # The half that stays, what is drawn from the seed before it is cut, and one tensor on
            # its way: as read, as cast, and the half that will stay.
            allowed = shared["module"] / 2 + shared["fresh"] + 2.5 * shared["largest"]
            assert shared["loading"] <= shared["towers"] + allowed < whole["loading"]
            assert shared["engine"] <= shared["largest"]
    assert found["1 new 3"]["fresh"] > 0, "stage 1 begins with an adaptor from the seed"
