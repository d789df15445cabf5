from __future__ import annotations

import pytest
import torch
from moe_samples import VARIANTS, small_language, small_model
from torch import Tensor, nn
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM, DeepseekV3ForCausalLM
from transformers.models.deepseek_ocr2.configuration_deepseek_ocr2 import DeepseekOcr2TextConfig
from transformers.models.deepseek_ocr2.modeling_deepseek_ocr2 import DeepseekOcr2TextModel

from vltrain.models.config import Attention, Recompute
from vltrain.models.language import segment_mask
from vltrain.models.moe_config import ExpertsKind
from vltrain.models.moe_language import MoeLanguageModel, deepseek_v3_config


def logits(model: MoeLanguageModel, ids: Tensor, segments: Tensor | None = None) -> Tensor:
    """(B, T, vocabulary); positions restart with each segment."""
    segments = torch.ones_like(ids) if segments is None else segments
    hidden = model(model.embed(ids), positions_in(segments), segment_mask(segments))
    return model.lm_head(hidden)


def positions_in(segments: Tensor) -> Tensor:
    rows = []
    for row in segments.tolist():
        counts: dict[int, int] = {}
        rows.append([counts.update({s: counts.get(s, -1) + 1}) or counts[s] for s in row])
    return torch.tensor(rows)


def some_ids(*shape: int) -> Tensor:
    return torch.randint(0, 64, shape, generator=torch.Generator().manual_seed(3))


def stock_tiny() -> nn.Module:
    """Plain attention with experts exists in transformers without a head."""
    language = small_language("tiny")
    record = DeepseekOcr2TextConfig(
        **v2_sizes(), head_dim=language.width // language.heads, mlp_layer_types=LAYER_TYPES
    )
    stock = nn.Module()
    stock.model = DeepseekOcr2TextModel(record)
    stock.lm_head = nn.Linear(language.width, language.vocab_size, bias=False)
    return stock


LAYER_TYPES = ["dense", "sparse", "sparse"]


def v2_sizes() -> dict:
    return {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 64,
        "moe_intermediate_size": 16,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 2,
        "topk_method": "greedy",
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }


def stock_of(variant: str) -> nn.Module:
    if variant == "tiny":
        return stock_tiny()
    if variant == "base":
        record = deepseek_v3_config(
            small_language("base"), attention=Attention.sdpa, experts=ExpertsKind.grouped
        )
        return DeepseekV3ForCausalLM(record)
    return DeepseekV2ForCausalLM(
        DeepseekV2Config(
            **v2_sizes(),
            first_k_dense_replace=1,
            q_lora_rank=None,
            kv_lora_rank=8,
            qk_nope_head_dim=8,
            qk_rope_head_dim=4,
            v_head_dim=6,
        )
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant):
    ours, stock = small_model(variant), stock_of(variant)
    state = dict(ours.named_parameters())
    if variant == "base":
        assert ours.balance.corrections is not None
        ours.balance.corrections.copy_(torch.randn(2, 8) * 0.1)
        for layer in (1, 2):
            name = f"model.layers.{layer}.mlp.gate.e_score_correction_bias"
            state[name] = ours.balance.corrections[layer - 1]
    stock.load_state_dict(state, strict=True)
    stock.eval()
    ids = some_ids(2, 19)
    with torch.no_grad():
        hidden = stock.model(input_ids=ids, use_cache=False).last_hidden_state
        expected = stock.lm_head(hidden)
        found = logits(ours, ids)
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("attention", list(Attention))
def test_packed_logits_equal_unpacked_logits(variant, attention):
    model = small_model(variant, attention=attention, init_std=0.08)
    ids = some_ids(1, 24)
    lengths = (9, 4, 8)
    segments = torch.tensor([[1] * 9 + [2] * 4 + [3] * 8 + [0] * 3])
    with torch.no_grad():
        together = logits(model, ids, segments)[0]
        leaking = logits(model, ids, segments.clamp(min=1, max=1))[0]
        assert (together - leaking)[9:].abs().max() > 1e-2
        start = 0
        for length in lengths:
            alone = logits(model, ids[:, start : start + length])[0]
            torch.testing.assert_close(together[start : start + length], alone, rtol=0, atol=1e-6)
            start += length


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_ways_to_compute_experts_agree(variant):
    """One expert gets no token at all: its gradient is zero, not absent."""
    gradients = []
    ids = some_ids(1, 3)
    for kind in ExpertsKind:
        model = small_model(variant, experts=kind)
        logits(model, ids).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    unused = 0
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-4)
        if name.endswith("experts.gate_up_proj"):
            unused += int((gradient.abs().sum(dim=(1, 2)) == 0).sum())
    assert unused > 0


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("how", [Recompute.selective, Recompute.full])
def test_recomputed_layers_give_the_same_gradients_to_the_router_too(variant, how):
    gradients = []
    ids = some_ids(2, 12)
    for recompute in (Recompute.none, how):
        model = small_model(variant, recompute=recompute)
        hidden, penalty, loads = model.routed(
            model.embed(ids),
            positions=positions_in(torch.ones_like(ids)),
            mask=segment_mask(torch.ones_like(ids)),
            real=torch.ones_like(ids, dtype=torch.bool),
        )
        (hidden.sum() * 0 + penalty.sum()).backward()
        assert loads.sum().item() == 2 * 24 * 2  # layers with experts, tokens, experts per token
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for layer in (1, 2):
        gate = gradients[1][f"model.layers.{layer}.mlp.gate.weight"]
        assert gate is not None
        assert gate.abs().max() > 1e-4
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize("how", [Recompute.selective, Recompute.full])
def test_the_router_learns_where_the_embeddings_are_frozen(how):
    """Reentrant recomputation would drop the penalty in silence: nothing that goes in has a
    gradient."""
    model = small_model("small", recompute=how)
    ids = some_ids(2, 12)
    _, penalty, _ = model.routed(
        model.embed(ids).detach(),
        positions=positions_in(torch.ones_like(ids)),
        mask=segment_mask(torch.ones_like(ids)),
        real=torch.ones_like(ids, dtype=torch.bool),
    )
    penalty.sum().backward()
    for layer in (1, 2):
        gate = model.get_parameter(f"model.layers.{layer}.mlp.gate.weight").grad
        assert gate is not None
        assert gate.abs().max() > 1e-4


def test_padding_is_no_load_and_no_penalty():
    model = small_model("small")
    ids = some_ids(1, 12)
    segments = torch.tensor([[1] * 7 + [0] * 5])

    def routed(real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return model.routed(
            model.embed(ids),
            positions=positions_in(segments),
            mask=segment_mask(segments),
            real=real,
        )

    _, penalty, loads = routed(segments > 0)
    assert loads.sum(dim=1).tolist() == [14, 14]
    alone = model.routed(
        model.embed(ids[:, :7]),
        positions=positions_in(segments[:, :7]),
        mask=segment_mask(segments[:, :7]),
        real=segments[:, :7] > 0,
    )
    torch.testing.assert_close(penalty, alone[1])
    _, nothing, none = routed(torch.zeros_like(ids, dtype=torch.bool))
    assert (nothing.tolist(), none.sum().item()) == ([0.0], 0)


def test_a_cast_of_the_module_rounds_neither_corrections_nor_rotary_angles():
    model = small_model("base").bfloat16()
    assert not list(model.buffers())
    assert model.balance.corrections is not None
    assert model.balance.corrections.dtype is torch.float32
