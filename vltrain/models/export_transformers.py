"""The export that stock transformers loads: its config, its processor, its names.

``AutoModelForImageTextToText`` and ``AutoProcessor`` read the directory. SigLIP's pooling head is
written where it was stored, though no DeepSeek-VL reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import (
    DeepseekVLForConditionalGeneration,
    DeepseekVLHybridForConditionalGeneration,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.image_utils import PILImageResampling
from transformers.models.deepseek_vl.image_processing_pil_deepseek_vl import (
    DeepseekVLImageProcessorPil,
)
from transformers.models.deepseek_vl.processing_deepseek_vl import DeepseekVLProcessor
from transformers.models.deepseek_vl_hybrid.image_processing_pil_deepseek_vl_hybrid import (
    DeepseekVLHybridImageProcessorPil,
)
from transformers.models.deepseek_vl_hybrid.processing_deepseek_vl_hybrid import (
    DeepseekVLHybridProcessor,
)
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.siglip.configuration_siglip import SiglipVisionConfig

from vltrain.models.check import refuse_unpublished
from vltrain.models.config import ModelConfig
from vltrain.models.export_tokens import ExportTokens
from vltrain.models.published import hybrid_config, siglip_only_config

_POOLING = "siglip.head."


class StockTransformers:
    """See the module's docstring."""

    def check(self, config: ModelConfig) -> None:
        """Raises ConfigError for a model that this format has no place for."""
        refuse_unpublished(config)

    def layout(self, config: ModelConfig) -> str:
        return "deepseek_vl" if config.sam is None else "deepseek_vl_hybrid"

    def unused(
        self, config: ModelConfig, *, kept: Mapping[str, tuple[int, ...]]
    ) -> dict[str, tuple[int, ...]]:
        """The pooling head that was stored, if one was; there is no place for other tensors."""
        return {name: shape for name, shape in kept.items() if name.startswith(_POOLING)}

    def settings(
        self,
        config: ModelConfig,
        *,
        tokens: ExportTokens,
        dtype: torch.dtype,
        unused: Mapping[str, tuple[int, ...]],
    ) -> dict[str, object]:
        """config.json."""
        record = siglip_only_config(config) if config.sam is None else hybrid_config(config)
        vision, text = record.vision_config, record.text_config
        assert isinstance(vision, SiglipVisionConfig)
        assert isinstance(text, LlamaConfig)
        vision.vision_use_head = bool(unused)
        text.bos_token_id, text.eos_token_id = tokens.bos_id, tokens.eos_id
        record.dtype = dtype
        stock = (
            DeepseekVLForConditionalGeneration
            if config.sam is None
            else DeepseekVLHybridForConditionalGeneration
        )
        record.architectures = [stock.__name__]
        return json.loads(record.to_json_string())

    def write_processor(
        self, directory: Path, *, config: ModelConfig, tokens: ExportTokens
    ) -> None:
        """Tokenizer, processor and generation_config.json."""
        processor = _processor(config, tokens.tokenizer(), tokens.chat_template())
        processor.save_pretrained(directory)
        GenerationConfig(
            bos_token_id=tokens.bos_id, eos_token_id=tokens.eos_id, pad_token_id=tokens.eos_id
        ).save_pretrained(directory)


def _processor(
    config: ModelConfig, tokenizer: PreTrainedTokenizerFast, chat_template: str
) -> DeepseekVLHybridProcessor | DeepseekVLProcessor:
    """Image views as published: padded square in bicubic, low view from it in bilinear."""
    assert config.siglip is not None, "every released model has a SigLIP"
    low = {"height": config.siglip.image_size, "width": config.siglip.image_size}
    if config.sam is None:
        return DeepseekVLProcessor(
            DeepseekVLImageProcessorPil(
                size=low,
                image_mean=config.siglip_mean,
                image_std=config.siglip_std,
                do_convert_rgb=True,
            ),
            tokenizer,
            chat_template=chat_template,
            num_image_tokens=config.tokens_per_image,
        )
    images = DeepseekVLHybridImageProcessorPil(
        size=low,
        resample=PILImageResampling.BILINEAR,
        high_res_size={"height": config.sam.image_size, "width": config.sam.image_size},
        high_res_image_mean=config.sam_mean,
        high_res_image_std=config.sam_std,
        image_mean=config.siglip_mean,
        image_std=config.siglip_std,
        do_convert_rgb=True,
    )
    return DeepseekVLHybridProcessor(
        images, tokenizer, chat_template=chat_template, num_image_tokens=config.tokens_per_image
    )
