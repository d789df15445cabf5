"""All routed experts as grouped products, beside a plain loop over experts.

    python benchmarks/experts_grouped.py        (--device cuda on a GPU; alone on the machine)

The routed experts of one layer, forward and backward, on identical states, weights and routing (a
random router's), the two ways in turn; medians of the rounds. On a GPU with DeepSeek-VL2-Tiny's
sizes in bf16; on the CPU smaller ones in fp32, where torch's grouped product is itself a loop and
the seconds are those of the processor, which a busy machine changes less. How far outputs and
gradients are apart is exact.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from results import arguments, report
from torch import Tensor
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts

from vltrain.models.config import Attention, LanguageConfig
from vltrain.models.moe_config import ExpertsKind, MoeConfig
from vltrain.models.moe_language import deepseek_v3_config

GROUPED, LOOP = ExpertsKind.grouped, ExpertsKind.reference


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of a layer of experts and its input."""

    experts: int
    per_token: int
    width: int
    ffn: int
    tokens: int
    dtype: torch.dtype
    rounds: int


SIZES = {
    "quick": Size(
        experts=16, per_token=4, width=64, ffn=32, tokens=128, dtype=torch.float32, rounds=3
    ),
    "cpu": Size(
        experts=64, per_token=6, width=128, ffn=128, tokens=512, dtype=torch.float32, rounds=20
    ),
    "cuda": Size(
        experts=64, per_token=6, width=1280, ffn=896, tokens=4096, dtype=torch.bfloat16, rounds=50
    ),
}
APART = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Greatest distance of outputs and gradients, over their greatest value."""


def main() -> None:
    parser = arguments("Grouped experts beside a loop over experts.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parsed = parser.parse_args()
    size = SIZES["quick" if parsed.quick else parsed.device]
    torch.set_num_threads(1)
    ways = {kind: experts_of(size, kind=kind, device=parsed.device) for kind in (GROUPED, LOOP)}
    given = input_of(size, device=parsed.device)
    apart = distance(*(passed(ways[kind], given) for kind in (GROUPED, LOOP)))
    rounds = [
        {kind.value: seconds(ways[kind], given) for kind in (GROUPED, LOOP)}
        for _ in range(size.rounds)
    ]
    grouped, loop = (median(row[kind.value] for row in rounds) for kind in (GROUPED, LOOP))
    report(
        "experts_grouped",
        figures={
            "device": device_name(parsed.device),
            "torch": torch.__version__,
            "size": {name: str(value) for name, value in vars(size).items()},
            "grouped, median seconds": grouped,
            "loop, median seconds": loop,
            "rounds": rounds,
        },
        goals={
            "loop / grouped, forward and backward": (loop / grouped, ">=", 1.0),
            "distance of outputs and gradients": (apart, "<=", APART[size.dtype]),
        },
        draw=lambda figure: draw(figure, {"grouped": grouped, "loop over experts": loop}),
        out=parsed.out,
    )


def experts_of(size: Size, *, kind: ExpertsKind, device: str) -> DeepseekV3Experts:
    """As the model has them; the same weights at every call."""
    moe = MoeConfig(experts=size.experts, per_token=size.per_token, ffn=size.ffn)
    language = LanguageConfig(
        width=size.width,
        layers=2,
        heads=2,
        kv_heads=2,
        ffn=size.width,
        vocab_size=64,
        max_positions=size.tokens,
        moe=moe,
    )
    module = DeepseekV3Experts(deepseek_v3_config(language, attention=Attention.sdpa, experts=kind))
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=size.width**-0.5, generator=generator)
    return module.to(device, size.dtype)


def input_of(size: Size, *, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """States (tokens, width), experts and weights (tokens, k)."""
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(size.tokens, size.width, generator=generator)
    scores = torch.randn(size.tokens, size.experts, generator=generator).softmax(dim=-1)
    weights, experts = scores.topk(size.per_token, dim=-1)
    return states.to(device, size.dtype), experts.to(device), weights.to(device)


def passed(module: DeepseekV3Experts, given: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    """Output and gradients (of states and weights) of one forward and backward pass."""
    states, experts, weights = given
    states = states.detach().requires_grad_()
    module.zero_grad()
    out = module(states, experts, weights)
    out.float().square().sum().backward()
    gradients = [states.grad, *(parameter.grad for parameter in module.parameters())]
    return [out.detach(), *(g.detach().clone() for g in gradients if g is not None)]


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """The greatest of all tensors, each over its greatest value."""
    return max(
        float((a.float() - b.float()).abs().max() / b.float().abs().max())
        for a, b in zip(found, expected, strict=True)
    )


def seconds(module: DeepseekV3Experts, given: tuple[Tensor, Tensor, Tensor]) -> float:
    """Of one pass: the processor's on the CPU, from start to end on a GPU."""
    on_gpu = given[0].is_cuda
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize()
    begin = clock()
    passed(module, given)
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - begin


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def draw(figure: Figure, bars: dict[str, Any]) -> None:
    axes = figure.subplots()
    axes.barh(list(bars)[::-1], [1e3 * value for value in bars.values()][::-1])
    for place, value in enumerate(list(bars.values())[::-1]):
        axes.text(1e3 * value, place, f" {1e3 * value:.3g} ms", va="center", fontsize=8)
    axes.set_xlabel("milliseconds of one layer's routed experts, forward and backward, medians")
    axes.margins(x=0.15)


if __name__ == "__main__":
    main()
