"""Tiny models under the real engine in two processes, whose ranks differ in pictures, labels and
(where there are experts) in which of them are used; against plain torch in one process. Run by
torchrun: model_training.py OUT_FILE CASES; a case is {"model": its config in conf/model, "parts":
what trains, "overrides": of that config, "recompute": how every part's layers are recomputed,
"zero_stages": under which it trains}.

Rank 0 writes, per case, ZeRO stage and step, the loss, the largest difference of any parameter and
of the routers' corrections, how many experts each rank left without a token, which trained tensors
have not moved since the start, and how many frozen ones have moved by a bit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf

from vltrain import distributed
from vltrain.assemble.routers import balance_of
from vltrain.batch import IGNORE
from vltrain.engine.config import Dtype, EngineConfig
from vltrain.engine.engine import Engine, build_engine
from vltrain.engine.fragments import FragmentKind
from vltrain.engine.start import start
from vltrain.models.build import BuiltModel, build_model
from vltrain.models.config import PARTS, ModelConfig
from vltrain.models.trainable import part_of
from vltrain.optim.config import OptimConfig, ScheduleConfig, ScheduleKind
from vltrain.optim.groups import parameter_groups

LENGTH = 128
STEPS = [("image", "text"), ("same", "text"), ("unlabelled", "image"), ("text", "unlabelled")]
CORRECTION_STEP = 0.1
COLLECTIVE_SECONDS = 300
"""A rank that waits longer for another hangs: generous, for machines that are busy."""
# eps 1 makes an update proportional to its gradient, so that AdamW does not magnify rounding.
OPTIM = OptimConfig(
    lr=1.0, steps=10, eps=1.0, schedule=ScheduleConfig(kind=ScheduleKind.constant), clip_norm=0.0
)


def build(case: dict) -> BuiltModel:
    path = Path(__file__).parents[2] / "conf" / "model" / f"{case['model']}.yaml"
    merged = OmegaConf.merge(
        OmegaConf.structured(ModelConfig),
        OmegaConf.load(path),
        {
            "activation_checkpointing": dict.fromkeys(PARTS, case["recompute"]),
            "loss_chunk_tokens": 8,
        },
        case["overrides"],
    )
    config = OmegaConf.to_object(merged)
    assert isinstance(config, ModelConfig)
    built = build_model(
        config,
        trainable=case["parts"],
        freeze=[],
        dtype=torch.float32,
        frozen_dtype=torch.float32,
        device="cpu",
        seed=0,
    )
    if config.sam is not None:  # alpha is 0 at the start, where mistakes would not show
        with torch.no_grad():
            built.module.adaptor.get_parameter("alpha").fill_(0.3)
    return built


def inputs(built: BuiltModel, kind: str, seed: int) -> dict:
    """One row; the ranks' label counts, so their numbers of loss chunks, differ by kind."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 512, (1, LENGTH), generator=generator)
    targets = ids.roll(-1, 1)
    targets[:, -1] = IGNORE
    if kind == "image":
        targets[:, :114] = IGNORE
    if kind == "same":  # equal tokens all choose the same experts
        ids[:] = 5
    if kind == "unlabelled":
        targets[:] = IGNORE
    sizes = [(10, 10), (60, 30)] if kind == "image" else []
    layouts = [built.config.geometry.layout(*size, images_in_sample=2) for size in sizes]
    grids = torch.tensor([layout.shape for layout in layouts], dtype=torch.int64).view(-1, 2)
    side = built.config.image_side
    squares = torch.randint(
        0,
        256,
        (sum(layout.squares for layout in layouts), side, side, 3),
        dtype=torch.uint8,
        generator=generator,
    )
    return {
        "ids": ids,
        "positions": torch.arange(LENGTH)[None],
        "segments": torch.ones(1, LENGTH, dtype=torch.int32),
        "targets": targets,
        "image_positions": torch.arange(5, 5 + sum(layout.tokens for layout in layouts)),
        "features": {**built.frozen.encode(squares), "grids": grids},
    }


def largest_difference(engine: Engine, reference: BuiltModel) -> float:
    expected = dict(reference.module.named_parameters())
    differences = [0.0]
    for fragment in engine.export_fragments():
        if fragment.kind is FragmentKind.master and fragment.values.numel():
            flat = expected[fragment.name].detach().flatten()
            own = flat[fragment.offset : fragment.offset + fragment.values.numel()]
            differences.append(float((fragment.values - own).abs().max()))
    return max(distributed.gather_objects(max(differences)))


def corrections(built: BuiltModel) -> torch.Tensor:
    """After a step of every router that has any."""
    balance = balance_of(built)
    if balance is None:
        return torch.zeros(1)
    balance.finish_step(step_size=CORRECTION_STEP)
    return torch.zeros(1) if balance.corrections is None else balance.corrections


def idle_experts(built: BuiltModel) -> int:
    """How many experts had no token of this rank in the micro-batch just computed, over layers."""
    balance = balance_of(built)
    return 0 if balance is None else int((balance._loads == 0).sum())


def frozen_tensors(engine: Engine, built: BuiltModel) -> dict[str, torch.Tensor]:
    """Copies of all that does not train, inside the engine and outside it."""
    return {
        name: tensor.detach().clone()
        for name, tensor in (*engine.frozen_tensors(), *built.frozen.named_parameters())
    }


def train(zero_stage: int, case: dict) -> list[dict[str, float]]:
    built, reference = build(case), build(case)
    engine = build_engine(
        built.module,
        groups=parameter_groups(built.module.named_parameters(), part_of=part_of, config=OPTIM),
        config=EngineConfig(zero_stage=zero_stage, dtype=Dtype.fp32, param_persistence_threshold=0),
        clip_norm=0.0,
        micro_batch_size=1,
        micro_batches_per_step=1,
        device=torch.device("cpu"),
    )
    plain = torch.optim.AdamW(
        [p for p in reference.module.parameters() if p.requires_grad],
        lr=1.0,
        betas=(0.9, 0.95),
        eps=1.0,
        weight_decay=0.0,
    )
    frozen = frozen_tensors(engine, built)
    initial = {n: p.detach().clone() for n, p in reference.module.named_parameters()}
    rows = []
    for step, kinds in enumerate(STEPS):
        mine = inputs(built, kinds[distributed.rank()], seed=2 * step + distributed.rank())
        both = [inputs(reference, kind, seed=2 * step + r) for r, kind in enumerate(kinds)]
        targets = sum(int((batch["targets"] != IGNORE).sum()) for batch in both)
        engine.begin_micro(last=True)
        engine.backward(engine.forward(mine) * 2 / targets)
        engine.apply(dict.fromkeys(engine.parts, 1.0))
        plain.zero_grad()
        losses = [reference.module(**batch) / targets for batch in both]
        for loss in losses:
            loss.backward()
        plain.step()
        moved = {
            name: float((parameter.detach() - initial[name]).abs().max())
            for name, parameter in reference.module.named_parameters()
        }
        idle = distributed.gather_objects(idle_experts(built))
        # The reference has counted both ranks' tokens: its corrections move as theirs together.
        correction, expected = corrections(built), corrections(reference)
        apart = float((correction - expected).abs().max())
        rows.append(
            {
                "loss": sum(loss.item() for loss in losses),
                "idle_experts": idle,
                "corrections_apart": max(distributed.gather_objects(apart)),
                "corrections_moved": float(correction.abs().max()),
                "moved": max(moved.values()),
                # A key's bias changes no softmax: its gradient is nothing but rounding.
                "unmoved": [
                    name
                    for name in reference.trainable
                    if moved[name] == 0 and not name.endswith("k_proj.bias")
                ],
                "difference": largest_difference(engine, reference),
                "every_part_trains": set(built.config.parts) == set(case["parts"]),
                "frozen": len(frozen),
                "frozen_moved": sum(
                    not torch.equal(frozen[name], tensor)
                    for name, tensor in frozen_tensors(engine, built).items()
                ),
            }
        )
    return rows


def main() -> None:
    out, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    start(EngineConfig(timeout_seconds=COLLECTIVE_SECONDS))
    rows = [{stage: train(stage, case) for stage in case["zero_stages"]} for case in cases]
    if distributed.is_first():
        out.write_text(json.dumps(rows))
    distributed.barrier()


if __name__ == "__main__":
    main()
