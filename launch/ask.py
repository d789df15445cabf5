"""Ask a trained model about a picture.

python launch/ask.py RUN IMAGE "question" [--tokens N] [key=value ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from command_line import add_overrides, with_clean_errors

from vltrain.assemble.inference import LoadedRun, load_run
from vltrain.batch import Role, StoredImage, Turn
from vltrain.errors import DataError, RecordFault
from vltrain.evaluate.subject import subject_of
from vltrain.processing.images import probe_size


def main() -> None:
    """Load the run, ask, print the answer alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run directory or one of its checkpoints")
    parser.add_argument("image", type=Path, help="a picture file")
    parser.add_argument("question")
    parser.add_argument("--tokens", type=int, default=32, help="longest answer, in tokens")
    add_overrides(parser)
    words = parser.parse_intermixed_args()
    picture = read_picture(words.image)
    run = load_run(words.run, overrides=words.overrides)
    print(ask(run, picture, words.question, max_new_tokens=words.tokens))


def read_picture(path: Path) -> StoredImage:
    """The file as a stored image. Raises DataError for what is no picture."""
    try:
        data = path.read_bytes()
        width, height = probe_size(data)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except RecordFault as fault:
        raise DataError(f"{path} is no picture that can be used: {fault}") from fault
    return StoredImage(member=path.name, data=data, width=width, height=height)


def ask(run: LoadedRun, picture: StoredImage, question: str, *, max_new_tokens: int) -> str:
    """The model's greedy answer to ``question`` about ``picture``."""
    turn = Turn(role=Role.user, content=(0, "\n" + question))
    prompt = run.encoder.prompt_ids((turn,), (picture,))
    subject = subject_of(run.built, end_id=run.encoder.tokenizer.eos_id)
    try:
        squares = subject.squares(prompt)
    except RecordFault as fault:
        raise DataError(f"{picture.member} cannot be decoded: {fault}") from fault
    images = torch.from_numpy(squares)
    ids = subject.generate([prompt], images=images, max_new_tokens=max_new_tokens)[0]
    return run.encoder.tokenizer.decode(ids, skip_special=True).strip()


if __name__ == "__main__":
    with_clean_errors(main)
