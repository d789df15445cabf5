"""A text model's tokenizer directory in, the same with an image token at a chosen id out.

A language model's own tokenizer has no image token. Simply adding it would give it the first free
id (100002 for DeepSeek LLM's), but the released vision-language models use 100015, and an id is an
embedding row: it cannot be moved afterwards. Ids between are filled with unused special tokens,
because added tokens must be contiguous to be read back with their ids.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from vltrain.errors import ConfigError
from vltrain.processing.tokens import CONFIG_FILE, TOKENIZER_FILE


def place_image_token(
    source: str | Path, *, image_token: str, image_token_id: int, directory: str | Path
) -> Path:
    """Write ``source``'s tokenizer.json, with ``image_token`` at ``image_token_id``, and its
    tokenizer_config.json into ``directory`` (made if missing); returns it.

    Raises ConfigError where the id is taken or the token already exists.
    """
    source, directory = Path(source), Path(directory)
    document = json.loads((source / TOKENIZER_FILE).read_text(encoding="utf-8"))
    ids = dict(document["model"]["vocab"])
    ids.update({token["content"]: token["id"] for token in document["added_tokens"]})
    if image_token in ids:
        raise ConfigError(
            f"{source / TOKENIZER_FILE} already has {image_token!r}, with id {ids[image_token]}"
        )
    first_free = max(ids.values()) + 1
    if image_token_id < first_free:
        raise ConfigError(
            f"id {image_token_id} is taken in {source / TOKENIZER_FILE}: the first free id is "
            f"{first_free}"
        )
    for i in range(first_free, image_token_id + 1):
        content = image_token if i == image_token_id else f"<|unused_{i}|>"
        document["added_tokens"].append(
            {
                "id": i,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / TOKENIZER_FILE).write_text(
        json.dumps(document, ensure_ascii=False), encoding="utf-8"
    )
    shutil.copyfile(source / CONFIG_FILE, directory / CONFIG_FILE)
    return directory
