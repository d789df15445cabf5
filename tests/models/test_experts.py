"""How the routed experts are computed: one grouped product for all of them, in the type that the
engine asks for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from moe_samples import small_language
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vltrain.models.config import Attention
from vltrain.models.moe_config import ExpertsKind
from vltrain.models.moe_language import MoeBlock, deepseek_v3_config


class Operations(TorchDispatchMode):
    """Counts what runs inside, by name, and the types that the grouped products are given."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.grouped_types: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = func.overloadpacket._qualified_op_name
        self.counts[name] += 1
        if name == "aten::_grouped_mm":
            matrices = [x for x in tree_leaves(args) if isinstance(x, torch.Tensor)]
            self.grouped_types |= {m.dtype for m in matrices if m.is_floating_point()}
        return func(*args, **(kwargs or {}))


def block_of(kind: ExpertsKind, *, experts: int) -> MoeBlock:
    language = small_language("base", experts=experts)
    assert language.moe is not None
    record = deepseek_v3_config(language, attention=Attention.sdpa, experts=kind)
    torch.manual_seed(0)
    block = MoeBlock(language.moe, record=record)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return block


def passed(block: MoeBlock) -> tuple[Operations, torch.Tensor]:
    """A forward and backward pass over 64 tokens: what ran, and the output."""
    states = torch.randn(1, 64, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with Operations() as ran:
        out, penalty, _ = block(states, torch.ones(1, 64, dtype=torch.bool), None)
        (out.float().square().sum() + penalty.sum()).backward()
    return ran, out


def test_grouped_experts_are_no_loop_over_experts() -> None:
    few, many = (passed(block_of(ExpertsKind.grouped, experts=n))[0].counts for n in (4, 32))
    assert few == many
    # Gate with up, and down: forward, and the gradients of states and weights.
    assert many["aten::_grouped_mm"] == 2 * 3
    assert not [name for name in many if "fallback" in name]  # transformers' loop in Python
    loops = [passed(block_of(ExpertsKind.reference, experts=n))[0].counts.total() for n in (4, 32)]
    assert loops[1] > 3 * loops[0]


@pytest.mark.parametrize("kind", ExpertsKind)
def test_autocast_reaches_the_experts(kind: ExpertsKind) -> None:
    """Without ZeRO, bf16 is autocast over float32 parameters."""
    block, exact = block_of(kind, experts=8), block_of(kind, experts=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ran, out = passed(block)
    assert ran.grouped_types == ({torch.bfloat16} if kind is ExpertsKind.grouped else set())
    assert out.dtype is torch.bfloat16
    expected = passed(exact)[1]
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)
    wanted = dict(exact.named_parameters())
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype is torch.float32
        difference = (parameter.grad - wanted[name].grad).norm() / wanted[name].grad.norm()
        assert difference < 0.05, name
