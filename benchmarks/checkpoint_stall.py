"""How long training stands still for a checkpoint, beside torch.save of the same state.

    python benchmarks/checkpoint_stall.py        (on a machine that does nothing else)

A text model trains by the real engine on this machine's CPU; every few steps it saves with the
trainer's own writer. Standing still is the time that the loop spends in ``save`` and waits before
the next update for the copy. Between two such saves the same masters and moments go through
``torch.save`` into the same folder, without a sync. The steps during which the files are written
are longer on a machine whose cores also compute the steps: by how much is said too.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from checkpointed import ADAM_BYTES, built_model, engine_of, manifest_of
from matplotlib.figure import Figure
from results import arguments, report

from vltrain.batch import IGNORE
from vltrain.checkpoint.background import BackgroundWriter
from vltrain.checkpoint.config import CheckpointConfig
from vltrain.checkpoint.store import CheckpointStore
from vltrain.engine.config import EngineConfig
from vltrain.engine.engine import Engine
from vltrain.engine.start import start
from vltrain.models.build import BuiltModel


class Run:
    """Steps of training, and what each costs (seconds)."""

    def __init__(self, folder: Path, *, width: int, tokens: int) -> None:
        sizes = {"width": width, "heads": 4, "kv_heads": 4, "ffn": 3 * width, "layers": 8}
        changes = {"language": {**sizes, "vocab_size": 8192}}
        self.built: BuiltModel = built_model(
            "demo", trainable=["adaptor", "language"], device="cpu", changes=changes
        )
        self.engine: Engine = engine_of(self.built)
        store = CheckpointStore(folder / "checkpoints", config=CheckpointConfig(keep_last=1))
        self.writer = BackgroundWriter(store, group=None)
        self._folder, self._tokens = folder, tokens
        self.steps = 0

    def step(self) -> tuple[float, float]:
        """Seconds of the step, and of them waited for a copy."""
        ids = torch.randint(4, 8192, (1, self._tokens))
        targets = ids.roll(-1)
        targets[:, -1] = IGNORE
        begin = time.perf_counter()
        inputs = {
            "ids": ids,
            "positions": torch.arange(self._tokens)[None],
            "segments": torch.ones(1, self._tokens, dtype=torch.int32),
            "targets": targets,
            "image_positions": torch.zeros(0, dtype=torch.int64),
            "features": self.built.frozen.encode(torch.zeros(0, 128, 128, 3, dtype=torch.uint8)),
        }
        self.engine.begin_micro(last=True)
        self.engine.backward(self.engine.forward(inputs) / self._tokens)
        ready = time.perf_counter()
        self.writer.copied(waiting=_nothing)
        waited = time.perf_counter() - ready
        self.engine.apply(dict.fromkeys(self.engine.parts, 1e-4))
        self.steps += 1
        return time.perf_counter() - begin, waited

    def save(self) -> float:
        begin = time.perf_counter()
        self.writer.save(
            manifest_of(self.built, step=self.steps),
            self.engine.export_fragments(),
            tensor_digests={},
            texts={},
            rng={},
            waiting=_nothing,
        )
        return time.perf_counter() - begin

    def torch_save(self) -> float:
        state = {
            f"{fragment.kind.value}/{fragment.name}": fragment.values
            for fragment in self.engine.export_fragments()
        }
        begin = time.perf_counter()
        torch.save(state, self._folder / "state.pt")
        return time.perf_counter() - begin


def main() -> None:
    parsed = arguments("Standing still for a checkpoint.").parse_args()
    torch.set_num_threads(1)
    start(EngineConfig())
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), width=128 if parsed.quick else 512, tokens=256)
        rounds = [one_round(run) for _ in range(2 if parsed.quick else 5)]
    parameters = sum(p.numel() for p in run.built.module.parameters() if p.requires_grad)
    medians = {name: median(row[name] for row in rounds) for name in rounds[0]}
    size = {"parameters": parameters, "bytes": parameters * ADAM_BYTES}
    figures: dict[str, Any] = medians | size | {"rounds": rounds}
    report(
        "checkpoint_stall",
        figures=figures,
        goals={
            "torch.save over standing still (medians)": (
                figures["torch_save"] / figures["stall"],
                ">=",
                10,
            )
        },
        draw=lambda figure: draw(figure, figures),
        out=parsed.out,
    )


def one_round(run: Run) -> dict[str, float]:
    """Seconds: of a step without a save, of the stall, of the step beside the copy, until the files
    are there, and of torch.save."""
    alone = median(run.step()[0] for _ in range(2))
    begin = time.perf_counter()
    called = run.save()
    beside, waited = run.step()
    run.writer.settle(waiting=_nothing)
    written = time.perf_counter() - begin
    return {
        "step": alone,
        "stall": called + waited,
        "step_beside_the_copy": beside,
        "written_after": written,
        "torch_save": run.torch_save(),
    }


def _nothing() -> None: ...


def draw(figure: Figure, figures: dict[str, Any]) -> None:
    axes = figure.subplots()
    bars = {
        "torch.save": figures["torch_save"],
        "standing still here": figures["stall"],
        "a step": figures["step"],
        "the step beside the copy": figures["step_beside_the_copy"],
        "until the files are there": figures["written_after"],
    }
    colors = ["lightgray", "tab:blue", "lightgray", "lightgray", "lightgray"]
    axes.barh(list(bars)[::-1], list(bars.values())[::-1], color=colors[::-1])
    for place, value in enumerate(list(bars.values())[::-1]):
        axes.text(value, place, f" {value:.3g} s", va="center", fontsize=8)
    axes.set_xlabel(f"seconds, medians; a state of {figures['bytes'] / 1e6:.0f} MB")
    axes.margins(x=0.12)


if __name__ == "__main__":
    main()
