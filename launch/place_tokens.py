"""Give a text model's tokenizer the tokens that a vision-language model needs beside:
python launch/place_tokens.py SOURCE DIRECTORY [--id TOKEN=ID ...] stage=1 model=... [key=value ...]

SOURCE is a directory with the text model's tokenizer.json and tokenizer_config.json; DIRECTORY gets
copies with the new tokens, and SOURCE stays as it is. The words are those of launch/train.py: the
image token gets model.image_token_id, and where the model's family writes tokens for roles and
boxes (DeepSeek-VL2), these follow it in the released order. --id puts one of them elsewhere. Ids
must be free and have a row of the embedding (model.language.vocab_size).
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from command_line import run_with_composed
from omegaconf import DictConfig

from stages import policy_of
from vltrain.errors import ConfigError
from vltrain.processing.conversation import ROLE_TOKENS
from vltrain.processing.place_tokens import place_tokens, released_ids


def main() -> None:
    """Compose the words to a config, place what it needs."""
    words = _arguments()
    sys.argv[1:] = words.overrides
    run_with_composed(lambda composed: _place(words, composed))


def _place(words: argparse.Namespace, composed: DictConfig) -> None:
    ids = _ids(composed, chosen=words.id)
    place_tokens(
        words.source,
        ids=ids,
        vocab_size=composed.model.language.vocab_size,
        directory=words.directory,
    )
    for name, token_id in ids.items():
        print(f"{token_id:>7} {name}")
    print(f"Prepare and train every stage with model.tokenizer={words.directory}")


def _ids(composed: DictConfig, *, chosen: list[str]) -> dict[str, int]:
    """Tokens by name, the image token first."""
    model = composed.model
    templates = policy_of(composed.stage.number).templates.get(model.family, frozenset())
    ids = released_ids(image_token=model.image_token, image_token_id=model.image_token_id)
    if not templates & ROLE_TOKENS.keys():
        ids = {model.image_token: model.image_token_id}
    others = [name for name in ids if name != model.image_token]
    for word in chosen:
        found = re.fullmatch(r"(.+)=(\d+)", word)
        if found is None or found[1] not in others:
            raise ConfigError(
                f"--id {word}: expected TOKEN=ID, TOKEN one of those that {model.name} needs "
                f"beside its image token: {', '.join(others) or 'none'}. The image token's id is "
                "model.image_token_id"
            )
        ids[found[1]] = int(found[2])
    return ids


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("directory", type=Path, metavar="DIRECTORY")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--id", action="append", default=[], metavar="TOKEN=ID")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
