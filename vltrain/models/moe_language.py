"""DeepSeek-VL2's language model: mixture of experts, with latent or plain attention.

In: embeddings with positions, mask and which tokens are real. Out: hidden states, and with them
what the router's training needs; the head gives loss or logits. Attention, norms, dense layers and
experts are transformers' DeepSeek-V3 (which computes V2's latent attention as well, on the same
weights), plain attention is Llama's; the router is ours (see ``router``), and so is the loop over
layers, for the reasons given in ``language``.

Routed experts are one stacked tensor each for gate with up and for down, so an expert without a
token gets a zero gradient, never none, and every rank runs the same modules. ``grouped`` computes
them as grouped matrix products without a loop over experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.cache_utils import Cache
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3Experts,
    DeepseekV3MLP,
    DeepseekV3RMSNorm,
)
from transformers.models.llama.modeling_llama import LlamaAttention

from vltrain.models.config import Attention, LanguageConfig, ModelConfig, Recompute
from vltrain.models.language import mask_for, rotary_embedding
from vltrain.models.loss import LossHead
from vltrain.models.moe_config import ExpertsKind, MoeConfig
from vltrain.models.published import decoder_fields, llama_config
from vltrain.models.recompute import recomputed
from vltrain.models.router import Router, balance_penalty
from vltrain.models.router_balance import RouterBalance

_EXPERTS = {ExpertsKind.grouped: "grouped_mm", ExpertsKind.reference: "eager"}


def deepseek_v3_config(
    config: LanguageConfig, *, attention: Attention, experts: ExpertsKind
) -> DeepseekV3Config:
    """transformers' record of the language model. Plain attention has no place in it: its fields
    for latent attention are then meaningless."""
    assert config.moe is not None, "a language model with experts"
    mla = config.mla
    latent = {} if mla is None else {
        "kv_lora_rank": mla.kv_rank,
        "qk_nope_head_dim": mla.nope_dim,
        "qk_rope_head_dim": mla.rope_dim,
        "v_head_dim": mla.value_dim,
    }  # fmt: skip
    return DeepseekV3Config(
        **decoder_fields(config, attention=attention.value),
        q_lora_rank=None,
        n_routed_experts=config.moe.experts,
        num_experts_per_tok=config.moe.per_token,
        n_shared_experts=config.moe.shared,
        moe_intermediate_size=config.moe.ffn,
        first_k_dense_replace=config.moe.dense_layers,
        norm_topk_prob=config.moe.normalise_weights,
        routed_scaling_factor=config.moe.scale,
        n_group=1,
        topk_group=1,
        experts_implementation=_EXPERTS[experts],  # pyright: ignore[reportCallIssue]
        **latent,
    )


class MoeBlock(nn.Module):
    """Routed and shared experts (published name: ``mlp``)."""

    def __init__(self, config: MoeConfig, *, record: DeepseekV3Config) -> None:
        super().__init__()
        self.gate = Router(config, width=record.hidden_size)
        self.experts = DeepseekV3Experts(record)
        self.shared_experts = DeepseekV3MLP(record, intermediate_size=config.shared * config.ffn)

    def forward(
        self, states: Tensor, real: Tensor, correction: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """states (B, T, width), real bool (B, T) -> states, penalty (B,) and load (experts,)."""
        experts, weights, scores = self.gate(states, correction)
        routed = self._routed(states.flatten(0, 1), experts.flatten(0, 1), weights.flatten(0, 1))
        penalty, load = balance_penalty(scores, experts=experts, real=real)
        return routed.view_as(states) + self.shared_experts(states), penalty, load.sum(dim=0)

    def _routed(self, states: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """states (N, width), experts int64 and weights (N, k) -> (N, width). Autocast knows no
        grouped products and would leave them in the parameters' float32, for which a GPU has no
        grouped kernel; so what it does for linear layers is done here."""
        device = states.device.type
        if not torch.is_autocast_enabled(device):
            return self.experts(states, experts, weights)
        dtype = torch.get_autocast_dtype(device)
        cast = {name: parameter.to(dtype) for name, parameter in self.experts.named_parameters()}
        return functional_call(self.experts, cast, (states.to(dtype), experts, weights))


class MoeLayer(nn.Module):
    """One layer; a dense one has an MLP for its ``mlp`` and neither penalty nor load."""

    def __init__(
        self, config: LanguageConfig, *, number: int, record: DeepseekV3Config, attention: Attention
    ) -> None:
        super().__init__()
        assert config.moe is not None, "a language model with experts"
        if config.mla is not None:
            self.self_attn = DeepseekV3Attention(record, layer_idx=number)
        else:
            plain = llama_config(config, attention=attention.value)
            self.self_attn = LlamaAttention(plain, layer_idx=number)
        self.routes = number >= config.moe.dense_layers
        if self.routes:
            self.mlp = MoeBlock(config.moe, record=record)
        else:
            self.mlp = DeepseekV3MLP(record)
        self.input_layernorm = DeepseekV3RMSNorm(config.width, eps=config.norm_eps)
        self.post_attention_layernorm = DeepseekV3RMSNorm(config.width, eps=config.norm_eps)

    def forward(
        self,
        state: Tensor,
        mask: Tensor,
        rotary: tuple[Tensor, Tensor],
        real: Tensor,
        correction: Tensor | None,
        cache: Cache | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """state (B, T, width) -> state, penalty (B,), load (experts,)."""
        attended, _ = self.self_attn(
            self.input_layernorm(state),
            attention_mask=mask,
            position_embeddings=rotary,
            past_key_values=cache,
        )
        state = state + attended
        normed = self.post_attention_layernorm(state)
        if not self.routes:
            return state + self.mlp(normed), None, None
        update, penalty, load = self.mlp(normed, real, correction)
        return state + update, penalty, load


class _Decoder(nn.Module):
    """Embedding, layers and last norm under their published names; a container, never called."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        language = config.language
        record = deepseek_v3_config(language, attention=config.attention, experts=config.experts)
        self.embed_tokens = nn.Embedding(language.vocab_size, language.width)
        self.layers = nn.ModuleList(
            MoeLayer(language, number=number, record=record, attention=config.attention)
            for number in range(language.layers)
        )
        self.norm = DeepseekV3RMSNorm(language.width, eps=language.norm_eps)


class MoeLanguageModel(nn.Module):
    """Decoder (``model``) and output layer (``lm_head``), named as in a published
    DeepseekV2ForCausalLM. ``balance``: the routers' loads and corrections, no part of the
    module's parameters or buffers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        language = config.language
        self.model = _Decoder(config)
        self.lm_head = LossHead(
            language.width, language.vocab_size, chunk_tokens=config.loss_chunk_tokens
        )
        _initialise(self, std=language.init_std)
        self.attention = config.attention
        self.recompute = config.activation_checkpointing.language
        mla = language.mla
        self.rotary_dim = language.width // language.heads if mla is None else mla.rope_dim
        self.rope_theta = language.rope_theta
        self.balance = RouterBalance.of(language)

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> (B, T, width)."""
        return self.model.embed_tokens(ids)

    def forward(
        self, embeds: Tensor, positions: Tensor, mask: Tensor, cache: Cache | None = None
    ) -> Tensor:
        """Hidden states after the final norm, (B, T, width). Arguments as ``LanguageModel``'s."""
        real = torch.ones_like(positions, dtype=torch.bool)
        return self._run(embeds, positions=positions, mask=mask, real=real, cache=cache)[0]

    def routed(
        self, embeds: Tensor, *, positions: Tensor, mask: Tensor, real: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As ``forward``, for training: hidden states (B, T, width); each row's balance penalty,
        summed over layers, fp32 (B,); loads int64 (layers with experts, experts). ``real`` bool
        (B, T): tokens that are not padding."""
        return self._run(embeds, positions=positions, mask=mask, real=real, cache=None)

    def _run(
        self, embeds: Tensor, *, positions: Tensor, mask: Tensor, real: Tensor, cache: Cache | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        mask = mask_for(self.attention, mask, dtype=embeds.dtype)
        rotary = rotary_embedding(
            positions, dim=self.rotary_dim, theta=self.rope_theta, dtype=embeds.dtype
        )
        how = self.recompute if cache is None else Recompute.none
        state = embeds
        penalties, loads = [], []
        for number, layer in enumerate(self.model.layers):
            correction = self.balance.correction(number)
            state, penalty, load = recomputed(
                layer, state, mask, rotary, real, correction, cache, how=how
            )
            if penalty is not None:
                penalties.append(penalty)
                loads.append(load)
        return self.model.norm(state), torch.stack(penalties).sum(dim=0), torch.stack(loads)


def _initialise(module: nn.Module, *, std: float) -> None:
    """Every matrix (stacked experts, routers and embedding too) from a normal distribution; norms
    stay at 1. DeepSeek's models have no biases."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=std)
