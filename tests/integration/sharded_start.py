"""What each rank holds while a stage is assembled; run by torchrun in a workspace:
sharded_start.py OUT CASES. CASES: JSON, name -> words of the command line.

Rank 0 writes, per case: ``loading``, the most bytes of tensors alive at once on any rank from the
first parameter until the last one has its value; ``engine``, the most bytes of whole parameters
alive on any rank from then on; ``module``, ``towers`` and ``fresh``, bytes of the engine's module,
of the frozen towers and of the parts that start from the seed; ``largest``, of one parameter; and
``masters``, a digest of all weights that train.
"""

from __future__ import annotations

import json
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
from launching import composed
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from stages import policy_of
from vltrain import distributed
from vltrain.assemble import training
from vltrain.assemble.stage_run import watchdog_of
from vltrain.engine.fragments import FragmentKind
from vltrain.engine.start import start
from vltrain.logs import setup_logging
from vltrain.models.build import BuiltModel
from vltrain.models.trainable import part_of
from vltrain.models.weights import part_digest, tensor_digest
from vltrain.train.signals import StopRequest


class Alive(TorchDispatchMode):
    """The most bytes of tensors that were alive at once, from what every operation took and
    gave."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[int, int] = {}
        self._now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_iter((args, kwargs, out)):
            if isinstance(value, torch.Tensor) and value.device.type != "meta":
                self._count(value.untyped_storage())
        self.most = max(self.most, self._now)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._seen:
            self._seen[key] = storage.nbytes()
            self._now += storage.nbytes()
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._now -= self._seen.pop(key)


class Whole(TorchDispatchMode):
    """The most bytes of whole parameters of the module that were alive at once."""

    def __init__(self, built: BuiltModel) -> None:
        super().__init__()
        self._parameters = list(built.module.parameters())
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        held = {p.data.untyped_storage().data_ptr(): p.data.nbytes for p in self._parameters}
        self.most = max(self.most, sum(held.values()))
        return out


def measured(words: list[str]) -> dict[str, Any]:
    config = composed(*words)
    policy = policy_of(config.stage.number)
    found: dict[str, Any] = {}
    build, engine_of = training.build_model, training._engine

    def build_measured(*args: Any, unfilled: Any, **kwargs: Any) -> BuiltModel:
        found["alive"] = Alive()
        found["alive"].__enter__()
        built = build(*args, unfilled=unfilled, **kwargs)
        sizes = {n: p.numel() * p.itemsize for n, p in built.named_parameters()}
        module = {n for n, _ in built.module.named_parameters()}
        found["module"] = sum(sizes[n] for n in module)
        found["towers"] = sum(size for n, size in sizes.items() if n not in module)
        found["fresh"] = sum(s for n, s in sizes.items() if part_of(n) not in unfilled)
        found["largest"] = max(sizes[n] for n in module)
        return built

    def engine_measured(config: Any, built: BuiltModel, device: torch.device) -> Any:
        found["alive"].__exit__(None, None, None)
        found["whole"] = Whole(built)
        found["whole"].__enter__()
        return engine_of(config, built, device)

    training.build_model, training._engine = build_measured, engine_measured
    try:
        setup_logging(rank=int(os.environ["RANK"]))
        device = start(config.engine)
        config.run_dir.mkdir(parents=True, exist_ok=True)
        made = training.assemble_training(
            config,
            device=device,
            predecessors=policy.predecessors,
            may_be_new=policy.may_be_new,
            watchdog=watchdog_of(config.engine),
            stop=StopRequest(),
        )
    finally:
        training.build_model, training._engine = build, engine_of
    found["whole"].__exit__(None, None, None)
    mine = [
        (f"{fragment.name} {fragment.offset:012d}", fragment.values)
        for fragment in made.engine.export_fragments()
        if fragment.kind is FragmentKind.master
    ]
    runs = sorted(run for part in distributed.gather_objects(mine) for run in part)
    whole: dict[str, list[torch.Tensor]] = {}
    for name, values in runs:
        whole.setdefault(name.split()[0], []).append(values)
    digests = {name: tensor_digest(torch.cat(pieces)) for name, pieces in whole.items()}
    peaks = distributed.gather_objects((found.pop("alive").most, found.pop("whole").most))
    return found | {
        "loading": max(loading for loading, _ in peaks),
        "engine": max(engine for _, engine in peaks),
        "masters": part_digest(digests),
    }


def main() -> None:
    out, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    rows = {name: measured(words) for name, words in cases.items()}
    if distributed.is_first():
        out.write_text(json.dumps(rows))
    distributed.barrier()


if __name__ == "__main__":
    main()
