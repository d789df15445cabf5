"""Our weights as a published directory that stock transformers loads.

In: config, a state of all parts under our full names, and a tokenizer directory. Out: a directory
for ``AutoModelForImageTextToText`` and ``AutoProcessor``: config.json, generation_config.json,
safetensors, tokenizer, processor. Cost: one copy of the state on disk; the class is made on the
meta device.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedModel,
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

from vltrain.errors import WeightsError
from vltrain.models.check import refuse_unpublished
from vltrain.models.config import ModelConfig
from vltrain.models.layouts import published_name
from vltrain.models.published import hybrid_config, siglip_only_config

# The template of ``processing.conversation``. transformers adds no first token with
# this kind of tokenizer, so the template does.
CHAT_TEMPLATE = (
    "{{ bos_token "
    "}}{% for message in messages %}{% set content %}{% if message['content'] is string %}{{ "
    "message['content'] "
    "}}{% else %}{% for item in message['content'] %}{% if item['type'] == 'image' %}{{ "
    "image_token }}{% else %}{{ item['text'] "
    "}}{% endif %}{% endfor %}{% endif %}{% endset %}{% if message['role'] == 'system' %}{{ "
    "content | trim }}{{ '\n\n' }}{% elif message['role'] == 'user' %}{{ 'User: ' }}{{ content | "
    "trim }}{{ '\n\n' }}{% else %}{{ 'Assistant: ' }}{{ content | trim }}{{ eos_token "
    "}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def export_transformers(
    directory: str | Path,
    *,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    tokenizer_directory: str | Path,
    bos_token: str,
    eos_token: str,
) -> None:
    """Write ``state`` (all parts, our full names) as a published directory.

    Raises WeightsError if ``state`` is not exactly the model's parameters, or there is no
    tokenizer.
    """
    directory = Path(directory)
    model = _empty_model(config, dtype=next(iter(state.values())).dtype)
    renamed = {
        published_name(name, model_type=model.config.model_type): tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
    }
    expected = set(model.state_dict())
    if renamed.keys() != expected:
        raise WeightsError(
            f"cannot export to {directory}: missing {sorted(expected - renamed.keys())[:5]}, "
            f"unexpected {sorted(renamed.keys() - expected)[:5]}; give the state of every part"
        )
    tokenizer = _tokenizer(
        config, Path(tokenizer_directory), bos_token=bos_token, eos_token=eos_token
    )
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model.save_pretrained(directory, state_dict=renamed, max_shard_size="5GB")
    _processor(config, tokenizer).save_pretrained(directory)


def _empty_model(config: ModelConfig, *, dtype: torch.dtype) -> PreTrainedModel:
    """The published class on the meta device: its names, its config.json, no memory."""
    refuse_unpublished(config)
    record = siglip_only_config(config) if config.sam is None else hybrid_config(config)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(record, dtype=dtype)


def _tokenizer(
    config: ModelConfig, directory: Path, *, bos_token: str, eos_token: str
) -> PreTrainedTokenizerFast:
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise WeightsError(
            f"cannot export: {directory} has no tokenizer.json. Set model.tokenizer to the "
            "directory that the run was trained with"
        )
    return PreTrainedTokenizerFast(
        tokenizer_file=str(file),
        bos_token=bos_token,
        eos_token=eos_token,
        pad_token=eos_token,
        extra_special_tokens={"image_token": config.image_token},
        padding_side="left",
        model_max_length=config.language.max_positions,
    )


def _processor(
    config: ModelConfig, tokenizer: PreTrainedTokenizerFast
) -> DeepseekVLHybridProcessor | DeepseekVLProcessor:
    """Image views as published: padded square in bicubic, low view from it in bilinear."""
    assert config.siglip is not None, "the published models have a SigLIP"
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
            chat_template=CHAT_TEMPLATE,
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
        images, tokenizer, chat_template=CHAT_TEMPLATE, num_image_tokens=config.tokens_per_image
    )
