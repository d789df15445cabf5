"""make quickstart: a real vision-language model through three stages, on this machine, from
nothing. ``--model vl2``: the same with a DeepSeek-VL2.

Every step is a command that you could type yourself; each is printed before it runs. Only the first
two differ from a run on a cluster: the shards are made here from installed packages, and a short
warm start stands for the published checkpoints of SAM, SigLIP and the language model.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
DEEPSPEED = str(Path(sys.executable).parent / "deepspeed")


@dataclass(frozen=True, kw_only=True)
class Step:
    """Commands under one heading; ``together`` runs them side by side, one core each."""

    title: str
    commands: tuple[tuple[str, ...], ...]
    together: bool = False
    threads: int = 1  # of each command


@dataclass(frozen=True, kw_only=True)
class Demo:
    """``experiment``: in conf/. ``towers``: words for the towers' warm start, beside it."""

    experiment: str
    towers: tuple[str, ...] = ()


DEMOS = {
    "vl": Demo(experiment="demo"),
    "vl2": Demo(experiment="demo_vl2", towers=("stage.trainable=[siglip]",)),
}


def main() -> int:
    """Run the steps in order; stop at the first that fails."""
    arguments = _arguments()
    demo = DEMOS[arguments.model]
    name = f"runs/{demo.experiment}"
    root = arguments.root or (name if arguments.seed == 0 else f"{name}-{arguments.seed}")
    steps = demo_steps(root, seed=arguments.seed, demo=demo)
    begin = time.monotonic()
    for count, step in enumerate(steps, start=1):
        minutes = (time.monotonic() - begin) / 60
        print(f"\n=== [{count}/{len(steps)}] {step.title}   ({minutes:.1f} min so far)", flush=True)
        code = _run(step)
        if code != 0:
            print(f"\nquickstart: step {count} ({step.title}) failed with {code}", file=sys.stderr)
            return code
    minutes = (time.monotonic() - begin) / 60
    print(
        f"\nDone in {minutes:.1f} minutes. Look at {root}/report.html, or ask the model yourself:"
    )
    python = os.path.relpath(PYTHON, ROOT)
    print(f'  {python} launch/ask.py {root}/stage3 IMAGE.png "What color is the shape?"')
    return 0


def demo_steps(root: str, *, seed: int, demo: Demo) -> list[Step]:
    """The whole demo as commands."""
    words = (f"+experiment={demo.experiment}", f"run.root={root}", f"run.seed={seed}")
    steps = [
        Step(
            title="Real data from installed packages, as webdataset shards (data/demo)",
            commands=((PYTHON, "launch/make_data.py", "demo", "data/demo"),),
        ),
        Step(
            title="Warm start: a tokenizer",
            commands=((PYTHON, "launch/warm_start.py", "tokenizer", "stage=2", *words),),
        ),
        Step(
            title="Warm start: language model and towers, standing for published checkpoints",
            commands=(
                (PYTHON, "launch/warm_start.py", "language", "stage=2", *words),
                (PYTHON, "launch/warm_start.py", "towers", "stage=2", *words, *demo.towers),
            ),
            together=True,
        ),
    ]
    titles = {1: "the adaptor alone", 2: "language model and adaptor, 7:3", 3: "answers (SFT)"}
    for number, title in titles.items():
        stage = (f"stage={number}", *words)
        steps += [
            Step(
                title=f"Stage {number}: index and token sidecar",
                commands=((PYTHON, "launch/prepare.py", *stage),),
            ),
            Step(
                title=f"Stage {number}: {title}, two processes",
                commands=((DEEPSPEED, "--num_gpus", "2", "launch/train.py", *stage),),
            ),
            Step(
                title=f"Stage {number}: held-out evaluation, with every picture blanked beside it",
                commands=((PYTHON, "launch/eval.py", f"{root}/stage{number}"),),
                threads=os.cpu_count() or 1,
            ),
        ]
    report = (PYTHON, "launch/report.py", root)
    return [*steps, Step(title="Report", commands=(report,))]


def _run(step: Step) -> int:
    """The first exit code that is not 0, or 0."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(step.threads)}
    running: list[subprocess.Popen] = []
    try:
        for command in step.commands:
            words = (os.path.relpath(c, ROOT) if c.startswith("/") else c for c in command)
            print(f"$ {shlex.join(words)}", flush=True)
            running.append(subprocess.Popen(command, cwd=ROOT, env=environment))
            if not step.together and running[-1].wait() != 0:
                break
        codes = [process.wait() for process in running]
    except KeyboardInterrupt:
        for process in running:
            process.terminate()
        return 130
    return next((code for code in codes if code != 0), 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", choices=sorted(DEMOS), default="vl")
    parser.add_argument(
        "--root", help="where the runs go; default runs/demo (runs/demo-SEED), runs/demo_vl2"
    )
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
