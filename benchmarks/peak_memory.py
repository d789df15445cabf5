"""What activation checkpointing, frozen towers and the chunked loss save.

    python benchmarks/peak_memory.py

One forward and backward pass in fp32 on the CPU: a hybrid model of 12 M parameters, one row of
1,024 tokens with four pictures, adaptor and language model training, and SigLIP or SAM where a row
says so. The figure is the most bytes that tensors held at one time beyond the weights and their
gradients' places: every storage that an operation makes is counted from its making to its end, so
kernels' own work space and the allocator's gaps are left out, and a busy machine changes nothing.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import torch
from matplotlib.figure import Figure
from results import arguments, report
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vltrain.batch import IGNORE
from vltrain.models.build import BuiltModel, build_model
from vltrain.models.config import (
    LanguageConfig,
    ModelConfig,
    Recompute,
    RecomputeConfig,
    SamConfig,
    SiglipConfig,
)

IMAGES = 4
STAGE_2 = ("adaptor", "language")
STAGE_3 = (*STAGE_2, "siglip")
NONE, SELECTIVE, FULL = Recompute.none, Recompute.selective, Recompute.full


class LiveBytes(TorchDispatchMode):
    """``peak``: the most bytes alive at one time of storages that were made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._alive = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in given:
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        self._alive += storage.nbytes()
        self.peak = max(self.peak, self._alive)
        weakref.finalize(storage, self._ended, storage.nbytes())

    def _ended(self, num_bytes: int) -> None:
        self._alive -= num_bytes


def main() -> None:
    parsed = arguments(
        "Peak memory of a pass, by what is recomputed, frozen and chunked."
    ).parse_args()
    tokens = 512 if parsed.quick else 1024
    measured = {name: mebibytes(name, tokens=tokens) for name in CASES}
    for name, (peak, frozen) in measured.items():
        print(f"{peak:8.1f} MiB, frozen towers {frozen:5.2f} MiB  {name}")
    figures = {name: peak for name, (peak, _) in measured.items()}
    towers = {name: frozen for name, (_, frozen) in measured.items()}
    nothing = figures["stage 3, nothing recomputed"]
    report(
        "peak_memory",
        figures={"peak, MiB": figures, "weights of frozen towers, MiB": towers},
        goals={
            "language selective / nothing": (
                figures["stage 3, language selective"] / nothing,
                "<=",
                0.9,
            ),
            "every part full / nothing": (figures["stage 3, every part full"] / nothing, "<=", 0.6),
            "chunked loss / all labels at once": (
                figures["stage 2, loss in chunks of 128"] / figures["stage 2, loss at once"],
                "<=",
                0.8,
            ),
            "SAM frozen / trained": (
                figures["stage 2, SAM frozen in bf16"] / figures["stage 2, SAM trained"],
                "<=",
                0.7,
            ),
            "weights of frozen towers, bf16 / fp32": (
                towers["stage 2, SAM frozen in bf16"] / towers["stage 2, SAM frozen in fp32"],
                "<=",
                0.5,
            ),
        },
        draw=lambda figure: draw(figure, figures),
        out=parsed.out,
    )


def recompute(**parts: Recompute) -> dict[str, Any]:
    return {"activation_checkpointing": RecomputeConfig(**parts)}


# What trains, changes of the model's config, type of the frozen towers.
_FULL_LANGUAGE = recompute(language=FULL)
CASES: dict[str, tuple[tuple[str, ...], dict[str, Any], torch.dtype]] = {
    "stage 3, nothing recomputed": (STAGE_3, {}, torch.bfloat16),
    "stage 3, language selective": (STAGE_3, recompute(language=SELECTIVE), torch.bfloat16),
    "stage 3, language full": (STAGE_3, _FULL_LANGUAGE, torch.bfloat16),
    "stage 3, language and SigLIP selective": (
        STAGE_3,
        recompute(language=SELECTIVE, siglip=SELECTIVE),
        torch.bfloat16,
    ),
    "stage 3, language and SigLIP full": (
        STAGE_3,
        recompute(language=FULL, siglip=FULL),
        torch.bfloat16,
    ),
    "stage 3, every part full": (
        STAGE_3,
        recompute(language=FULL, siglip=FULL, adaptor=FULL),
        torch.bfloat16,
    ),
    "stage 2, SAM trained": ((*STAGE_2, "sam"), _FULL_LANGUAGE, torch.bfloat16),
    "stage 2, SAM frozen in fp32": (STAGE_2, _FULL_LANGUAGE, torch.float32),
    "stage 2, SAM frozen in bf16": (STAGE_2, _FULL_LANGUAGE, torch.bfloat16),
    "stage 2, loss at once": (
        STAGE_2,
        _FULL_LANGUAGE | {"loss_chunk_tokens": 1 << 20},
        torch.bfloat16,
    ),
    "stage 2, loss in chunks of 128": (
        STAGE_2,
        _FULL_LANGUAGE | {"loss_chunk_tokens": 128},
        torch.bfloat16,
    ),
}

MODEL = ModelConfig(
    name="peak_memory",
    sam=SamConfig(
        image_size=256, patch_size=16, width=96, layers=4, heads=3, window=7, global_layers=[1, 3]
    ),
    siglip=SiglipConfig(image_size=128, patch_size=16, width=96, layers=4, heads=3, ffn=384),
    language=LanguageConfig(
        width=128, layers=6, heads=4, kv_heads=4, ffn=352, vocab_size=8192, max_positions=2048
    ),
    image_token_id=3,
    loss_chunk_tokens=128,
    encode_images_at_once=1,
)


def mebibytes(case: str, *, tokens: int) -> tuple[float, float]:
    """Peak of one pass of a case, after one that makes the gradients' places; and the weights of
    its frozen towers."""
    trains, changes, frozen_dtype = CASES[case]
    built = build_model(
        replace(MODEL, **changes),
        trainable=trains,
        freeze=[],
        dtype=torch.float32,
        frozen_dtype=frozen_dtype,
        device="cpu",
        seed=0,
    )
    one_pass(built, tokens=tokens)
    with LiveBytes() as live:
        one_pass(built, tokens=tokens)
    frozen = sum(parameter.nbytes for parameter in built.frozen.parameters())
    return live.peak / 2**20, frozen / 2**20


def one_pass(built: BuiltModel, *, tokens: int) -> None:
    """Forward and backward of one document, pictures first; all of its text is learned."""
    generator = torch.Generator().manual_seed(0)
    side, visual = built.config.image_side, IMAGES * built.config.tokens_per_image
    ids = torch.randint(4, 8192, (1, tokens), generator=generator)
    ids[0, 1 : 1 + visual] = built.config.image_token_id
    targets = ids.roll(-1, 1)
    targets[0, : 1 + visual] = IGNORE
    images = torch.randint(0, 256, (IMAGES, side, side, 3), dtype=torch.uint8, generator=generator)
    built.module(
        ids,
        torch.arange(tokens)[None],
        torch.ones(1, tokens, dtype=torch.int32),
        targets,
        torch.arange(1, 1 + visual),
        built.frozen.encode(images),
    ).backward()


def draw(figure: Figure, figures: dict[str, float]) -> None:
    axes = figure.subplots()
    axes.barh(list(figures)[::-1], list(figures.values())[::-1])
    axes.set_xlabel("most bytes alive beyond the weights and gradients, MiB")


if __name__ == "__main__":
    main()
