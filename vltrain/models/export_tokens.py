"""The tokenizer and the template of an export: what they are trained with, as other software reads
it.

In: the run's tokenizer directory and the names of its first and end tokens. Out: a stock tokenizer,
and the chat template of ``processing.conversation``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from vltrain.errors import WeightsError

# transformers adds no first token with this kind of tokenizer, so the template does.
_CONTENT = (
    "{% set content %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}{{ image_token }}"
    "{% else %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}{% endset %}"
)
_TURN = (
    "{% if message['role'] == 'system' %}{{ content | trim }}{{ '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' }}{{ content | trim }}{{ '\n\n' }}"
    "{% else %}{{ 'Assistant: ' }}{{ content | trim }}{{ eos_token }}{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class ExportTokens:
    """directory: has tokenizer.json. system_prompt: of conversations that bring none ("": none)."""

    directory: Path
    bos_token: str
    bos_id: int
    eos_token: str
    eos_id: int
    image_token: str
    max_length: int
    system_prompt: str

    @property
    def file(self) -> Path:
        return self.directory / "tokenizer.json"

    def check(self) -> None:
        """Raises WeightsError where there is no tokenizer.json."""
        if not self.file.is_file():
            raise WeightsError(
                f"cannot export: {self.directory} has no tokenizer.json. Set model.tokenizer to "
                "the directory that the run was trained with"
            )

    def write_as_released(self, directory: Path, *, pad_token: str) -> None:
        """The tokenizer's files as DeepSeek's releases have them."""
        shutil.copyfile(self.file, directory / "tokenizer.json")
        special = {
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "pad_token": pad_token,
        }
        write_json(directory / "special_tokens_map.json", special)
        write_json(
            directory / "tokenizer_config.json",
            {
                **special,
                "tokenizer_class": "LlamaTokenizerFast",
                "add_bos_token": True,
                "add_eos_token": False,
                "clean_up_tokenization_spaces": False,
                "model_max_length": self.max_length,
            },
        )

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return PreTrainedTokenizerFast(
            tokenizer_file=str(self.file),
            bos_token=self.bos_token,
            eos_token=self.eos_token,
            pad_token=self.eos_token,
            extra_special_tokens={"image_token": self.image_token},
            padding_side="left",
            model_max_length=self.max_length,
        )

    def chat_template(self) -> str:
        """Jinja: the DeepSeek template, images where they stand in the content."""
        system = ""
        if self.system_prompt.strip():
            # ASCII would have halves of surrogate pairs, which Jinja does not join.
            text = json.dumps(self.system_prompt.strip() + "\n\n", ensure_ascii=False)
            system = (
                "{% if not messages or messages[0]['role'] != 'system' %}{{ "
                + text
                + " }}{% endif %}"
            )
        return (
            "{{ bos_token }}"
            + system
            + "{% for message in messages %}"
            + _CONTENT
            + _TURN
            + "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
        )


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """As the files beside published weights are written."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
