"""Plain text in, token ids out, from a directory's ``tokenizer.json``.

The ``tokenizers`` library is used directly: loading takes 0.3 s for 100,000 tokens instead of a
second, and its ``encode_special_tokens`` is what makes text safe. With it, words such as
"<image_placeholder>" or an end token that a *user* typed are ordinary characters; special ids are
only ever placed by this package's own code. (transformers' fast tokenizers parse them out of any
text unless asked otherwise at every call.) No token is added around the text: the first and end
tokens belong to the template.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from tokenizers import AddedToken, Tokenizer

from vltrain.batch import Special
from vltrain.errors import ConfigError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"


class TextTokenizer:
    """A byte-level BPE with a first, an end and an image token.

    bos_id, eos_id, image_id: ids. special_ids: of the special tokens that it has. vocab_size:
    highest id + 1, what an embedding must at least have. digest: xxh3-64 hex of tokenizer.json and
    the three ids.
    """

    def __init__(
        self, backend: Tokenizer, *, bos_id: int, eos_id: int, image_id: int, digest: str
    ) -> None:
        self._backend = backend
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.image_id = image_id
        self.digest = digest
        found = {special: backend.token_to_id(special.value) for special in Special}
        self.special_ids = {s: i for s, i in found.items() if i is not None}
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self._origin: tuple[Path, str] | None = None

    @classmethod
    def load(cls, directory: str | Path, *, image_token: str, image_token_id: int) -> TextTokenizer:
        """Read ``tokenizer.json`` and ``tokenizer_config.json`` (for the names of the first and end
        tokens) in ``directory``.

        Raises ConfigError where a file or token is missing, a file is damaged or ``image_token``
        has another id.
        """
        directory = Path(directory)
        text, _ = read_json(directory, TOKENIZER_FILE)
        _, config = read_json(directory, CONFIG_FILE)
        backend = Tokenizer.from_str(text)
        bos_id = _id_of(backend, _token_name(config, "bos_token", directory), directory)
        eos_id = _id_of(backend, _token_name(config, "eos_token", directory), directory)
        _check_image_token(backend, image_token, image_token_id, directory)
        # A token that its file does not call special would still be parsed out of plain text.
        specials = [backend.id_to_token(i) for i in (bos_id, eos_id, image_token_id)]
        specials += [s.value for s in Special if backend.token_to_id(s.value) is not None]
        backend.add_special_tokens([AddedToken(name, special=True) for name in specials])
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        hasher = xxhash.xxh3_64(text.encode())
        hasher.update(json.dumps([bos_id, eos_id, image_token_id]).encode())
        tokenizer = cls(
            backend,
            bos_id=bos_id,
            eos_id=eos_id,
            image_id=image_token_id,
            digest=hasher.hexdigest(),
        )
        tokenizer._origin = (directory.absolute(), image_token)
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """Ids of plain text. Never contains a special id, whatever the text says."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int] | np.ndarray, *, skip_special: bool = False) -> str:
        """Text of ids; ``skip_special`` leaves out first, end and image tokens."""
        left_out = {self.bos_id, self.eos_id, self.image_id} if skip_special else set()
        kept = [int(i) for i in ids if int(i) not in left_out]
        return self._backend.decode(kept, skip_special_tokens=False)

    @functools.cached_property
    def break_levels(self) -> tuple[np.ndarray, np.ndarray]:
        """For splitting long documents: two arrays over ids, (vocab_size,).

        after: uint8, how good a place to cut lies right after the token: 4 a blank line, 3 a line's
        end, 2 a sentence's end, 1 anything else. resumes: bool, True where the token begins in the
        middle of a character (a UTF-8 continuation byte), so that no cut may lie before it.
        """
        after = np.ones(self.vocab_size, dtype=np.uint8)
        resumes = np.zeros(self.vocab_size, dtype=bool)
        for name, i in self._backend.get_vocab(with_added_tokens=True).items():
            piece = _raw_bytes(name)
            if piece.endswith(b"\n\n"):
                after[i] = 4
            elif piece.endswith(b"\n"):
                after[i] = 3
            elif piece.endswith(_SENTENCE_ENDS):
                after[i] = 2
            resumes[i] = bool(piece) and 0x80 <= piece[0] < 0xC0
        return after, resumes

    def __reduce__(self) -> tuple[Any, ...]:
        # The backend's own pickle forgets encode_special_tokens, so workers read the files again.
        assert self._origin is not None, "only a loaded tokenizer can be sent to another process"
        directory, image_token = self._origin
        load = functools.partial(
            TextTokenizer.load, image_token=image_token, image_token_id=self.image_id
        )
        return load, (directory,)


_SENTENCE_ENDS = tuple(mark.encode() for mark in ".!?。！？")


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """The byte-level alphabet's inverse: printable Latin-1 stands for itself, the other bytes are
    moved to 256 and up in order."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [b for b in range(256) if b not in kept]
    table = {chr(b): b for b in kept}
    table.update({chr(256 + n): b for n, b in enumerate(moved)})
    return table


def _raw_bytes(token: str) -> bytes:
    """Bytes of a byte-level token; an added token outside the alphabet is its own UTF-8."""
    table = _byte_of_character()
    if all(character in table for character in token):
        return bytes(table[character] for character in token)
    return token.encode()


def read_json(directory: Path, name: str) -> tuple[str, dict[str, Any]]:
    """A file's text and what it says. Raises ConfigError where it is not there or no JSON."""
    path = directory / name
    if not path.is_file():
        raise ConfigError(
            f"no {name} in {directory}: model.tokenizer must be a directory with "
            f"{TOKENIZER_FILE} and {CONFIG_FILE}, such as the published checkpoint's"
        )
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"{path} is not JSON ({error}): its {len(data):,} bytes begin with {data[:40]!r}; copy "
            "or fetch it again (a download without git-lfs leaves a short note in its place)"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a JSON object, found a {type(values).__name__}")
    return text, values


def _token_name(config: dict[str, Any], key: str, directory: Path) -> str:
    """``bos_token`` and the like are text or a record with ``content``."""
    value = config.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    if not isinstance(value, str) or not value:
        raise ConfigError(
            f"{directory / CONFIG_FILE} names no {key} (found {config.get(key)!r}): the template "
            f"begins with the first token and ends answers with the end token; add {key!r}"
        )
    return value


def _id_of(backend: Tokenizer, name: str, directory: Path) -> int:
    found = backend.token_to_id(name)
    if found is None:
        raise ConfigError(
            f"{directory / CONFIG_FILE} names the token {name!r}, which {TOKENIZER_FILE} beside it "
            "does not have: the two files are not of the same tokenizer"
        )
    return found


def _check_image_token(
    backend: Tokenizer, image_token: str, image_token_id: int, directory: Path
) -> None:
    found = backend.token_to_id(image_token)
    if found == image_token_id:
        return
    path = directory / TOKENIZER_FILE
    if found is not None:
        raise ConfigError(
            f"the image token {image_token!r} has id {found} in {path}, but model.image_token_id "
            f"is {image_token_id}: set model.image_token_id={found}, or use the model's own "
            "tokenizer"
        )
    holder = backend.id_to_token(image_token_id)
    taken = f"; id {image_token_id} is {holder!r} there" if holder is not None else ""
    raise ConfigError(
        f"no image token {image_token!r} in {path} (expected at id {image_token_id}{taken}): set "
        "model.image_token, or make a copy that has it with launch/place_tokens.py"
    )
