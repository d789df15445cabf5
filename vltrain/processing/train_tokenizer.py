"""Texts in, a small byte-level BPE tokenizer directory out (seconds for a few megabytes).

For models too small to carry a published vocabulary: with 100,000 tokens a tiny model is nearly all
embedding. It splits as DeepSeek's does in what matters (byte level, so nothing is unknown; single
digits; lines apart) and has the same special tokens, at ids 0 to 3; DeepSeek-VL2's follow, where
its template is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from vltrain.batch import Special, Template
from vltrain.errors import ConfigError
from vltrain.processing.conversation import ROLE_TOKENS
from vltrain.processing.tokens import CONFIG_FILE, TOKENIZER_FILE

BOS_TOKEN = "<｜begin▁of▁sentence｜>"
EOS_TOKEN = "<｜end▁of▁sentence｜>"
PAD_TOKEN = "<｜▁pad▁｜>"
IMAGE_TOKEN = "<image_placeholder>"
SPECIAL_TOKENS = (BOS_TOKEN, EOS_TOKEN, PAD_TOKEN, IMAGE_TOKEN)
"""Ids 0, 1, 2, 3."""
IMAGE_TOKEN_ID = SPECIAL_TOKENS.index(IMAGE_TOKEN)

_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_VL2_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    "{{ '<|User|>: ' + message['content'] + '\n\n<|Assistant|>:' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] }}{% endif %}{% endfor %}"
)


def train_bpe(
    texts: Iterable[str],
    *,
    vocab_size: int,
    directory: str | Path,
    image_token: str = IMAGE_TOKEN,
    template: Template = Template.deepseek,
) -> Path:
    """Train on ``texts`` and write tokenizer.json and tokenizer_config.json (as transformers'
    AutoTokenizer reads them) into ``directory``; returns it. The same texts give the same files.

    ``vocab_size`` counts the special tokens; texts with too few different words give fewer.
    ``template``: one with tokens for roles gives all of DeepSeek-VL2's. Raises ConfigError where
    the special tokens and every byte do not fit.
    """
    has_roles = template in ROLE_TOKENS
    special_tokens = [BOS_TOKEN, EOS_TOKEN, PAD_TOKEN, image_token]
    special_tokens += [special.value for special in Special if has_roles]
    if vocab_size < len(special_tokens) + 256:
        raise ConfigError(
            f"vocab_size {vocab_size} is below {len(special_tokens) + 256}: "
            f"{len(special_tokens)} special tokens and 256 bytes"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\r\n]"), behavior="isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / TOKENIZER_FILE))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS_TOKEN,
        "eos_token": EOS_TOKEN,
        "pad_token": PAD_TOKEN,
        "extra_special_tokens": {"image_token": image_token},
        "clean_up_tokenization_spaces": False,
        "model_max_length": 16384,
        "chat_template": _VL2_CHAT_TEMPLATE if has_roles else _CHAT_TEMPLATE,
    }
    (directory / CONFIG_FILE).write_text(
        json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
    )
    return directory
