"""What a checkpoint of stage 1 weighs beside one of everything.

    python benchmarks/checkpoint_bytes.py

The published 7B model is counted without its weights (meta device): 12 bytes of each parameter that
trains. Then the same two checkpoints are really written, of the demo's model, and their files are
weighed against what was reckoned for them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from checkpointed import ADAM_BYTES, PARTS, built_model, engine_of, manifest_of
from matplotlib.figure import Figure
from results import arguments, report

from vltrain.checkpoint.config import CheckpointConfig
from vltrain.checkpoint.store import CheckpointStore
from vltrain.engine.config import EngineConfig
from vltrain.engine.start import start

STAGE_1 = ("adaptor",)


def main() -> None:
    parsed = arguments("Bytes of checkpoints.").parse_args()
    start(EngineConfig())
    published = {
        "stage 1": reckoned("deepseek_vl_7b", STAGE_1),
        "everything": reckoned("deepseek_vl_7b", PARTS),
    }
    small = {
        name: {"reckoned": reckoned(model, parts), "files": written(model, parts)}
        for model in ["tiny" if parsed.quick else "demo"]
        for name, parts in (("stage 1", STAGE_1), ("everything", PARTS))
    }
    everything = small["everything"]
    report(
        "checkpoint_bytes",
        figures={"deepseek_vl_7b, reckoned": published, "really written": small},
        goals={
            "stage 1 of everything, 7B, %": (
                100 * published["stage 1"] / published["everything"],
                "<=",
                1.0,
            ),
            "files over reckoned bytes, everything": (
                everything["files"] / everything["reckoned"],
                "<=",
                1.1,
            ),
        },
        draw=lambda figure: draw(figure, published, small),
        out=parsed.out,
    )


def reckoned(model: str, parts: tuple[str, ...]) -> int:
    built = built_model(model, trainable=parts, device="meta")
    return ADAM_BYTES * sum(p.numel() for n, p in built.named_parameters() if n in built.trainable)


def written(model: str, parts: tuple[str, ...]) -> int:
    """Bytes of all files of a checkpoint."""
    built = built_model(model, trainable=parts, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder), config=CheckpointConfig())
        directory = store.save(
            manifest_of(built, step=1), engine_of(built).export_fragments(), rng={}
        )
        return sum(file.stat().st_size for file in directory.iterdir())


def draw(figure: Figure, published: dict[str, int], small: dict[str, dict[str, Any]]) -> None:
    axes = figure.subplots()
    bars = {f"7B, {name} (reckoned)": size for name, size in published.items()}
    bars |= {f"small, {name} (files)": sizes["files"] for name, sizes in small.items()}
    axes.barh(list(bars)[::-1], [size / 1e6 for size in bars.values()][::-1])
    axes.set_xscale("log")
    for place, size in enumerate(list(bars.values())[::-1]):
        axes.text(size / 1e6, place, f" {size / 1e6:,.1f} MB", va="center", fontsize=8)
    axes.set_xlabel("MB of a checkpoint (logarithmic)")
    axes.margins(x=0.15)


if __name__ == "__main__":
    main()
