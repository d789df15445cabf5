"""A text model's tokenizer directory in, the same with further special tokens at chosen ids out.

A language model's own tokenizer has no image token, nor DeepSeek-VL2's tokens for roles and places.
Simply adding them would give them the first free ids, which are not those of the released models
(100015 for DeepSeek-VL's image token, where DeepSeek LLM's first free id is 100002), and an id is
an embedding row: it cannot be moved afterwards. Ids between are filled with unused special tokens,
because added tokens must be contiguous to be read back with their ids.

Nothing that is there moves, and nothing is taken: placeholders that a text model reserves keep
their names. Rejected: renaming them, which would give a token the row of another that may be
trained.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vltrain.batch import Special
from vltrain.errors import ConfigError
from vltrain.processing.tokens import CONFIG_FILE, TOKENIZER_FILE, read_json

RELEASED_ORDER = (
    Special.ref,
    Special.ref_end,
    Special.det,
    Special.det_end,
    Special.grounding,
    Special.user,
    Special.assistant,
)
"""As the ids of DeepSeek-VL2's release follow the image token's (128815 in the vocabulary of
129,280, which makes them 128816 to 128822)."""


def released_ids(*, image_token: str, image_token_id: int) -> dict[str, int]:
    """All tokens of a DeepSeek-VL2, by name with ids."""
    names = [image_token, *(special.value for special in RELEASED_ORDER)]
    return {name: image_token_id + n for n, name in enumerate(names)}


def place_tokens(
    source: str | Path, *, ids: Mapping[str, int], vocab_size: int, directory: str | Path
) -> Path:
    """Write ``source``'s tokenizer.json, with the tokens of ``ids`` (name -> id), and its
    tokenizer_config.json into ``directory`` (made if missing); returns it. A token that is there
    with just this id is left alone. vocab_size: rows of the embedding.

    Raises ConfigError, before anything is written, where an id is taken, wanted twice or has no
    row, a token has another id, ``directory`` has a tokenizer, or ``source`` has none of this kind.
    """
    source, directory = Path(source), Path(directory)
    _, document = read_json(source, TOKENIZER_FILE)
    read_json(source, CONFIG_FILE)
    path = source / TOKENIZER_FILE
    if (directory / TOKENIZER_FILE).exists():
        raise ConfigError(f"{directory} has a {TOKENIZER_FILE} already; give a new directory")
    if document["model"].get("type", "BPE") != "BPE":
        raise ConfigError(
            f"{path} is a {document['model']['type']}: tokens are placed in byte-level BPE "
            "vocabularies, as DeepSeek's models have"
        )
    held = dict(document["model"]["vocab"])
    held.update({token["content"]: token["id"] for token in document["added_tokens"]})
    wanted = _unplaced(ids, held=held, vocab_size=vocab_size, path=path)
    names = {token_id: name for name, token_id in wanted.items()}
    first_free = max(held.values()) + 1
    for token_id in range(first_free, max(names, default=-1) + 1):
        content = names.get(token_id, f"<|unused_{token_id}|>")
        document["added_tokens"].append(_added(content, token_id=token_id))
    text = json.dumps(document, ensure_ascii=False)
    _check_read_back(text, ids=ids, path=path)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / TOKENIZER_FILE).write_text(text, encoding="utf-8")
    shutil.copyfile(source / CONFIG_FILE, directory / CONFIG_FILE)
    return directory


def _unplaced(
    ids: Mapping[str, int], *, held: Mapping[str, int], vocab_size: int, path: Path
) -> dict[str, int]:
    """Those of ``ids`` that are not there yet, all of which may be. held: what is there."""
    twice = [token_id for token_id, count in Counter(ids.values()).items() if count > 1]
    if twice:
        names = ", ".join(name for name, token_id in ids.items() if token_id == twice[0])
        raise ConfigError(f"id {twice[0]} is wanted for {names}: give each an id of its own")
    first_free = max(held.values()) + 1
    free = f"the first free id is {first_free}"
    for name, token_id in ids.items():
        if name in held and held[name] != token_id:
            raise ConfigError(
                f"{path} already has {name!r}, with id {held[name]}, and it is wanted at "
                f"{token_id}: an id is an embedding row and cannot be moved; want it at "
                f"{held[name]}, or begin with the text model's own tokenizer"
            )
        if name not in held and token_id < first_free:
            holder = next((repr(n) for n, i in held.items() if i == token_id), "below others")
            raise ConfigError(
                f"id {token_id}, wanted for {name!r}, is taken in {path} ({holder}): {free}"
            )
    new = {name: token_id for name, token_id in ids.items() if name not in held}
    if first_free + len(new) > vocab_size:
        raise ConfigError(
            f"{path} has ids up to {first_free - 1} and the embedding {vocab_size} rows "
            f"(model.language.vocab_size): no room for {len(new)} tokens. Choose the model that "
            "the text model's weights are of"
        )
    beyond = [name for name, token_id in new.items() if token_id >= vocab_size]
    if beyond:
        raise ConfigError(
            f"{', '.join(beyond)} would lie beyond the embedding's last row, {vocab_size - 1} "
            f"(model.language.vocab_size={vocab_size}): choose ids from {first_free} on"
        )
    return new


def _added(content: str, *, token_id: int) -> dict[str, Any]:
    """An entry of tokenizer.json."""
    return {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _check_read_back(text: str, *, ids: Mapping[str, int], path: Path) -> None:
    """Ids as the library that trains and serves with them gives them: it counts added tokens, and
    does not read the ids that a file gives them."""
    backend = Tokenizer.from_str(text)
    for name, token_id in ids.items():
        if (found := backend.token_to_id(name)) != token_id:
            raise ConfigError(
                f"{name!r} would be read with id {found}, not {token_id}: the ids in {path} have "
                "gaps, which added tokens cannot lie behind"
            )
