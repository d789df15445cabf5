"""The language model: DeepSeek LLM (Llama architecture) over packed documents.

In: embeddings with positions and segments. Out: hidden states; the head gives loss or logits.
Layers, norms and embedding are transformers' own, so published names fit; the loop over layers is
ours, because it must isolate the documents of a pack on every back end, recompute layer by layer
without reentrance, and keep rotary frequencies in float32 (they are a buffer in transformers,
which an engine's bf16 cast would round).

Attention takes an explicit 4-D mask: B x T x T booleans, 16 MiB for one 4,096-token row.
transformers' own detection of packed rows is rejected: it is off with a cache or with any mask,
silently.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import LlamaModel

from vltrain.models.config import Attention, ModelConfig
from vltrain.models.loss import LossHead
from vltrain.models.published import llama_config


class LanguageModel(nn.Module):
    """Decoder (``model``) and output layer (``lm_head``), named as in a published
    LlamaForCausalLM."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        language = config.language
        self.model = LlamaModel(llama_config(language, attention=config.attention.value))
        del self.model.rotary_emb  # see rotary_embedding
        self.lm_head = LossHead(
            language.width, language.vocab_size, chunk_tokens=config.loss_chunk_tokens
        )
        nn.init.normal_(self.lm_head.weight, std=language.init_std)
        self.attention = config.attention
        self.recompute = config.activation_checkpointing
        self.head_dim = language.width // language.heads
        self.rope_theta = language.rope_theta

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> (B, T, width)."""
        return self.model.embed_tokens(ids)

    def forward(
        self, embeds: Tensor, positions: Tensor, mask: Tensor, cache: Cache | None = None
    ) -> Tensor:
        """Hidden states after the final norm, (B, T, width).

        embeds (B, T, width). positions int64 (B, T). mask bool (B, 1, T, K): True where query t
        may see key k (see ``segment_mask``); K is T, or the cache's length after this call. With
        a cache nothing is recomputed.
        """
        mask = mask_for(self.attention, mask, dtype=embeds.dtype)
        rotary = rotary_embedding(
            positions, dim=self.head_dim, theta=self.rope_theta, dtype=embeds.dtype
        )
        recompute = self.recompute and torch.is_grad_enabled() and cache is None
        state = embeds
        for layer in self.model.layers:
            if recompute:
                state = checkpoint(
                    layer,
                    state,
                    attention_mask=mask,
                    position_embeddings=rotary,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            else:
                state = layer(
                    state, attention_mask=mask, position_embeddings=rotary, past_key_values=cache
                )
        return self.model.norm(state)


def rotary_embedding(
    positions: Tensor, *, dim: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, T, dim) of positions (B, T), angles in float32."""
    exponents = torch.arange(0, dim, 2, device=positions.device).float()
    frequencies = theta ** (-exponents / dim)
    angles = positions[..., None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def mask_for(attention: Attention, mask: Tensor, *, dtype: torch.dtype) -> Tensor:
    """The boolean mask as a back end takes it: eager adds numbers in ``dtype``."""
    if attention is not Attention.eager:
        return mask
    lowest = torch.finfo(dtype).min
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, lowest)


def segment_mask(segments: Tensor) -> Tensor:
    """segments int (B, T) -> bool (B, 1, T, T): each token sees itself and the earlier tokens of
    its own segment. Padding (0) is a segment like any other, so no row is without a key (which
    would be NaN).
    """
    same = segments[:, :, None] == segments[:, None, :]
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    return (same & causal)[:, None]
