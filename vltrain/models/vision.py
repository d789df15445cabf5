"""The vision towers, and the frozen ones' home outside the engine.

A tower maps pixels to features, a dict of tensors with the image as the first dimension. SAM ends
at its own neck and at the state after its first global block, where the adaptor's second neck
begins; SigLIP ends at its final norm (its pooling head is not used by DeepSeek-VL).

Towers that do not train live in ``FrozenTowers``, which is no submodule of what the engine wraps:
no engine casts, partitions, saves or reduces them, and they build no graph. A tower that trains
lives in the module and gets pixels instead of features. Rejected: running frozen towers inside
the engine's module (ZeRO-3 partitions SAM's position tables to size 0 and saves 0.4 B weights at
every checkpoint for nothing).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.sam.configuration_sam import SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionEncoder
from transformers.models.siglip.configuration_siglip import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipVisionModel

from vltrain.models.config import Activation, ModelConfig, SamConfig, SiglipConfig
from vltrain.models.pixels import pixel_view

TOWERS = ("sam", "siglip")

_ACTIVATIONS = {Activation.gelu: "gelu", Activation.gelu_tanh: "gelu_pytorch_tanh"}


def sam_vision_config(config: SamConfig) -> SamVisionConfig:
    """transformers' record of the SAM tower."""
    return SamVisionConfig(
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        window_size=config.window,
        global_attn_indexes=list(config.global_layers),
        output_channels=config.out_channels,
        initializer_range=0.02,  # the class's default, 1e-10, starts SAM at numerical zero
    )


def siglip_vision_config(config: SiglipConfig) -> SiglipVisionConfig:
    """transformers' record of the SigLIP tower."""
    return SiglipVisionConfig(
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.ffn,
        hidden_act=_ACTIVATIONS[config.activation],
        vision_use_head=False,
    )


class SamTower(SamVisionEncoder):
    """SAM's image encoder, giving both states that the adaptor needs.

    ``with_neck=False``: SAM's own neck belongs to the adaptor (``adaptor.train_sam_neck``) and
    ``last`` is the state before it.
    """

    def __init__(self, config: SamConfig, *, with_neck: bool) -> None:
        super().__init__(sam_vision_config(config))
        self.first_global_layer = config.global_layers[0]
        if not with_neck:
            self.neck = None

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """pixel_values (n, 3, S, S) -> sam_last (n, C, g, g), or (n, g, g, width) without the
        neck, and sam_first_global (n, g, g, width)."""
        assert self.pos_embed is not None, "sam_vision_config leaves use_abs_pos on"
        state = self.patch_embed(pixel_values.to(self.pos_embed.dtype)) + self.pos_embed
        first_global = state
        for number, layer in enumerate(self.layers):
            state = layer(state)
            if number == self.first_global_layer:
                first_global = state
        last = state if self.neck is None else self.neck(state)
        return {"sam_last": last, "sam_first_global": first_global}


class SiglipTower(SiglipVisionModel):
    """SigLIP's image encoder without its pooling head."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__(siglip_vision_config(config))

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """pixel_values (n, 3, s, s) -> siglip (n, tokens, width)."""
        output = super().forward(pixel_values)
        assert isinstance(output.last_hidden_state, Tensor)
        return {"siglip": output.last_hidden_state}


class FrozenTowers(nn.Module):
    """The towers that do not train, and the pixel views of those that do.

    ``towers`` holds the frozen ones by part name; ``trained`` names the rest, whose pixels are
    handed on under ``<part>_pixels`` in ``pixels_dtype``.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        towers: dict[str, nn.Module],
        trained: tuple[str, ...],
        pixels_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self._config = config
        self._trained = trained
        self._pixels_dtype = pixels_dtype
        self._device = device
        for part, tower in towers.items():
            self.add_module(part, tower.requires_grad_(False).eval())

    @torch.no_grad()
    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """What the trained module needs of ``images``, uint8 (n, S, S, 3) on any device; n may be
        0.

        Returns features of every frozen tower and pixels of every trained one, first dimension n,
        on the model's device. ``encode_images_at_once`` images go through a frozen tower at a
        time.
        """
        images = images.to(self._device, non_blocking=True)
        features = {
            f"{part}_pixels": pixel_view(
                self._config, part=part, images=images, dtype=self._pixels_dtype
            )
            for part in self._trained
        }
        for part, tower in self.named_children():
            features |= self._encode_with(part, tower, images)
        return features

    def _encode_with(self, part: str, tower: nn.Module, images: Tensor) -> dict[str, Tensor]:
        if len(images) == 0:
            return self._empty(part, tower)
        dtype = next(tower.parameters()).dtype
        chunks = [
            tower(pixel_view(self._config, part=part, images=chunk, dtype=dtype))
            for chunk in images.split(self._config.encode_images_at_once)
        ]
        return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}

    def _empty(self, part: str, tower: nn.Module) -> dict[str, Tensor]:
        """Features of no image: the shapes without running the tower (SAM refuses an empty
        batch)."""
        dtype = next(tower.parameters()).dtype
        if part == "siglip":
            shapes = {"siglip": (self._config.siglip.side**2, self._config.siglip.width)}
        else:
            sam = self._config.sam
            assert sam is not None, "no SAM in this model"
            grid = sam.image_size // sam.patch_size
            state = (grid, grid, sam.width)
            necked = (sam.out_channels, grid, grid)
            last = state if self._config.adaptor.train_sam_neck else necked
            shapes = {"sam_last": last, "sam_first_global": state}
        return {
            name: torch.zeros((0, *shape), dtype=dtype, device=self._device)
            for name, shape in shapes.items()
        }
