"""A tiny model with an adaptor and a language part, trained by the real engine in real processes.

Run by torchrun: toy_training.py SCENARIO OUT_DIRECTORY JSON_ARGUMENTS. Each rank writes
OUT_DIRECTORY/rank-N.json. The numbers are chosen so that ranks' shares cut through parameters.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from vltrain import distributed
from vltrain.checkpoint.config import CheckpointConfig
from vltrain.checkpoint.manifest import Manifest, ParamRecord, PartRecord
from vltrain.checkpoint.store import CheckpointStore
from vltrain.engine.config import Dtype, EngineConfig, Offload
from vltrain.engine.engine import Engine, build_engine
from vltrain.engine.fragments import FragmentKind
from vltrain.engine.start import start
from vltrain.optim.config import (
    Moments,
    OptimConfig,
    PartOptimConfig,
    ScheduleConfig,
    ScheduleKind,
)
from vltrain.optim.groups import parameter_groups
from vltrain.optim.schedules import learning_rate

OPTIM = OptimConfig(
    lr=0.05,
    steps=100,
    clip_norm=0.5,
    weight_decay=0.1,
    schedule=ScheduleConfig(kind=ScheduleKind.constant),
    parts={"adaptor": PartOptimConfig(lr_multiplier=2.0)},
)


class Toy(nn.Module):
    """Next-token loss sum; image features are added to every embedding. Without images the adaptor
    sees blank features, times zero: the rule that every parameter gets a gradient."""

    def __init__(self, *, obey_rule: bool = True) -> None:
        super().__init__()
        self.obey_rule = obey_rule
        generator = torch.Generator().manual_seed(0)
        self.adaptor = nn.Linear(6, 7)
        self.language = nn.ModuleDict(
            {
                "embed": nn.Embedding(11, 7),
                "hidden": nn.Linear(7, 7),
                "norm": nn.LayerNorm(7),
                "head": nn.Linear(7, 11, bias=False),
            }
        )
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)
        self.language["norm"].weight.requires_grad_(False)

    def forward(self, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """ids: (B, T); features: (n, 6), n may be 0."""
        x = self.language["embed"](ids)
        if len(features):
            x = x + self.adaptor(features.to(x.dtype)).mean(0)
        elif self.obey_rule:
            x = x + 0.0 * self.adaptor(torch.zeros(1, 6, dtype=x.dtype)).sum()
        x = self.language["norm"](torch.tanh(self.language["hidden"](x)))
        logits = self.language["head"](x)[:, :-1].float()
        return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")


def part_of(name: str) -> str:
    return name.split(".")[0]


def batch(step: int, index: int, kind: str) -> dict[str, torch.Tensor]:
    """Global micro-batch ``index`` of a step. kind: image, text, or same (always the same one; /512
    behind it divides its loss)."""
    if kind.startswith("same"):
        step, index, kind = 0, 0, "image"
    generator = torch.Generator().manual_seed(1000 * step + index)
    ids = torch.randint(0, 11, (2, 5 + index % 2), generator=generator)
    features = torch.randn(2 if kind == "image" else 0, 6, generator=generator)
    return {"ids": ids, "features": features}


def targets_of(kinds: list[str]) -> int:
    """Label tokens of a global step."""
    return sum(2 * (4 + (not k.startswith("same")) * (i % 2)) for i, k in enumerate(kinds))


def make_engine(options: dict, *, kinds: list[str]) -> Engine:
    """options: of EngineConfig, in plain words; obey_rule of the toy; moments of OptimConfig."""
    options = dict(options)
    module = Toy(obey_rule=options.pop("obey_rule", True))
    config = EngineConfig(
        zero_stage=options["zero_stage"],
        dtype=Dtype(options.get("dtype", "fp32")),
        offload_optimizer=Offload(options.get("offload_optimizer", "none")),
        offload_params=Offload(options.get("offload_params", "none")),
        param_persistence_threshold=options.get("param_persistence_threshold", 0),
    )
    optim = replace(OPTIM, moments=Moments(options.get("moments", "fp32")))
    return build_engine(
        module,
        groups=parameter_groups(module.named_parameters(), part_of=part_of, config=optim),
        config=config,
        clip_norm=OPTIM.clip_norm,
        micro_batch_size=2,
        micro_batches_per_step=len(kinds) // distributed.world_size(),
        device=torch.device("cpu"),
    )


def full_state(engine: Engine) -> dict[str, dict[str, torch.Tensor]]:
    """kind -> parameter -> flat values, put together from every rank's fragments."""
    pieces = [
        (f.name, f.kind.value, f.offset, f.values)
        for f in engine.export_fragments(frozen=lambda name: name.startswith("language"))
    ]
    shapes = {n: getattr(p, "ds_shape", p.shape) for n, p in Toy().named_parameters()}
    state: dict[str, dict[str, torch.Tensor]] = {kind.value: {} for kind in FragmentKind}
    gathered = [piece for own in distributed.gather_objects(pieces) for piece in own]
    for name, kind, offset, values in gathered:
        flat = state[kind].setdefault(name, torch.full((shapes[name].numel(),), torch.nan))
        assert flat[offset : offset + len(values)].isnan().all(), f"{name} twice at {offset}"
        flat[offset : offset + len(values)] = values
    for kind, tensors in state.items():
        assert all(not t.isnan().any() for t in tensors.values()), f"{kind} has gaps"
    return state


def train(engine: Engine, steps: list[list[str]], *, first: int = 0) -> list[dict]:
    """Steps, each the kinds of its global micro-batches in order: rank r of w takes r, r + w, ...;
    a kind that ends in ! has a loss that is not a number. A row per step, with the movement of
    each parameter."""
    rank, world = distributed.rank(), distributed.world_size()
    rows = []
    before = full_state(engine)["master"]
    for number, kinds in enumerate(steps, start=first):
        mine = range(rank, len(kinds), world)
        for index in mine:
            engine.begin_micro(last=index == mine[-1])
            loss = engine.forward(batch(number, index, kinds[index].removesuffix("!")))
            if kinds[index].endswith("!"):
                loss = loss * float("nan")
            if kinds[index].endswith("/512"):
                loss = loss / 512
            engine.backward(loss * world / targets_of(kinds))
        rates = {p: learning_rate(number, config=OPTIM, part=p) for p in engine.parts}
        outcome = engine.apply(rates)
        after = full_state(engine)["master"]
        rows.append(
            {
                "loss": outcome.loss,
                "grad_norm": outcome.grad_norm,
                "finite": outcome.finite,
                "moved": {n: float((after[n] - before[n]).norm()) for n in after},
            }
        )
        before = after
    return rows


def scenario_train(arguments: dict) -> dict:
    """Every engine option over the same steps, or over its own."""
    results = {}
    for name, options in arguments["engines"].items():
        steps = options.pop("steps", arguments.get("steps"))
        engine = make_engine(options, kinds=steps[-1])
        results[name] = train(engine, steps)
        results[name].append({"updates": engine.updates_made()})
    return results


def manifest_of(*, step: int, options: dict) -> Manifest:
    shapes = {name: tuple(p.shape) for name, p in Toy().named_parameters()}
    return Manifest(
        created="2026-01-01T00:00:00Z",
        step=step,
        finished=False,
        stage={"number": 2, "name": "toy"},
        run={"name": "toy", "dir": "toy", "wandb_id": None},
        config_digest="c",
        model_digest="m",
        tokenizer_digest="t",
        image_token_id=5,
        geometry={"tokens_per_image": 4},
        recipe_digest="r",
        seed=0,
        cursor={"packs": step},
        chain_head="00",
        counters={"tokens": step},
        parts={
            part: PartRecord(trained=True, path=None, digest=None)
            for part in ("adaptor", "language")
        },
        params={
            name: ParamRecord(shape=shape, dtype="float32", part=part_of(name))
            for name, shape in shapes.items()
        },
        world={"size": distributed.world_size(), "zero_stage": options["zero_stage"]},
    )


def scenario_save(arguments: dict) -> dict:
    """Train, save, train on: what a restored run must repeat."""
    results = {}
    for name, options in arguments["engines"].items():
        engine = make_engine(options, kinds=arguments["steps"][0])
        train(engine, arguments["steps"])
        store = CheckpointStore(Path(arguments["root"]) / name, config=CheckpointConfig())
        manifest = manifest_of(step=len(arguments["steps"]), options=options)
        store.save(manifest, engine.export_fragments(frozen=lambda name: True))
        first = len(arguments["steps"])
        results[name] = train(engine, arguments["more"], first=first)
        # Back in the same process, after a step that was not finite: as a rollback does it.
        train(engine, [["text!"] * len(arguments["more"][0])])
        checkpoint = store.newest()
        assert checkpoint is not None
        engine.import_state(checkpoint.reader(), updates=first)
        results[f"{name} again"] = train(engine, arguments["more"], first=first)
    return results


def scenario_restore(arguments: dict) -> dict:
    """[[saved name, engine options], ...]: restore each and train on."""
    results = []
    for name, options in arguments["pairs"]:
        engine = make_engine(options, kinds=arguments["more"][0])
        store = CheckpointStore(Path(arguments["root"]) / name, config=CheckpointConfig())
        checkpoint = store.newest()
        assert checkpoint is not None
        step = checkpoint.manifest.step
        engine.import_state(checkpoint.reader(), updates=step)
        assert engine.updates_made() == step
        results.append(train(engine, arguments["more"], first=step))
    return results


def scenario_hand_off(arguments: dict) -> dict:
    """Masters of the language part alone come from elsewhere: each element is its own number."""
    results = {}
    for name, options in arguments["engines"].items():
        engine = make_engine(options, kinds=["text"] * 2)
        fresh = full_state(engine)

        def read(name: str, kind: FragmentKind, offset: int, count: int) -> torch.Tensor | None:
            assert kind is FragmentKind.master
            numbers = torch.arange(offset, offset + count) + 1 / 3
            return numbers if part_of(name) == "language" else None

        engine.import_state(read, updates=None)
        state = full_state(engine)
        trained = [n for n in fresh["master"] if part_of(n) == "language"]
        results[name] = {
            "updates": engine.updates_made(),
            "adaptor_kept": all(
                state["master"][n].equal(fresh["master"][n])
                for n in fresh["master"]
                if part_of(n) == "adaptor"
            ),
            "language_taken": all(
                state["master"][n].equal(torch.arange(len(state["master"][n])) + 1 / 3)
                for n in trained
            ),
            "frozen": {n: list(t.shape) for n, t in engine.frozen_tensors()},
            "loss": float(engine.evaluate(batch(0, 0, "image"))),
        }
    return results


SCENARIOS = {
    "hand_off": scenario_hand_off,
    "train": scenario_train,
    "save": scenario_save,
    "restore": scenario_restore,
}


def launch(
    scenario: str,
    out: Path,
    arguments: dict,
    *,
    processes: int,
    environment: dict[str, str] | None = None,
) -> list:
    """Run the toy under torchrun (or plain python for one process); each rank's result."""
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += [str(Path(__file__)), scenario, str(out), json.dumps(arguments)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return [json.loads((out / f"rank-{r}.json").read_text()) for r in range(processes)]


def main() -> None:
    scenario, out, arguments = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    torch.set_num_threads(1)
    start(EngineConfig(timeout_seconds=300))
    result = SCENARIOS[scenario](arguments)
    (out / f"rank-{distributed.rank()}.json").write_text(json.dumps(result))
    distributed.barrier()


if __name__ == "__main__":
    main()
