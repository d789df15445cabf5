"""Ask a trained model about a picture.

python launch/ask.py RUN IMAGE "question" [--as text|ref|grounding] [--tokens N] [key=value ...]

A run of DeepSeek-VL2 that learned boxes is asked where something is with --as ref (the question is
the thing alone), or to answer with boxes with --as grounding; they are printed as it writes them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from command_line import add_overrides, with_clean_errors

from vltrain.assemble.inference import LoadedRun, load_run
from vltrain.batch import Part, Role, Special, StoredImage, Turn
from vltrain.errors import DataError, RecordFault
from vltrain.evaluate.subject import subject_of
from vltrain.processing.images import probe_size

QUESTIONS: dict[str, Callable[[str], tuple[Part, ...]]] = {
    "text": lambda question: (question,),
    "ref": lambda question: (Special.ref, question, Special.ref_end),
    "grounding": lambda question: (Special.grounding, question),
}
"""A question's parts, by how it is asked."""


def main() -> None:
    """Load the run, ask, print the answer alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run directory or one of its checkpoints")
    parser.add_argument("image", type=Path, help="a picture file")
    parser.add_argument("question")
    parser.add_argument("--as", dest="how", choices=QUESTIONS, default="text")
    parser.add_argument("--tokens", type=int, default=32, help="longest answer, in tokens")
    add_overrides(parser)
    words = parser.parse_intermixed_args()
    picture = read_picture(words.image)
    run = load_run(words.run, overrides=words.overrides)
    question = QUESTIONS[words.how](words.question)
    print(ask(run, picture, question, max_new_tokens=words.tokens))


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


def ask(
    run: LoadedRun, picture: StoredImage, question: Sequence[Part], *, max_new_tokens: int
) -> str:
    """The model's greedy answer to ``question`` about ``picture``. Raises DataError for a picture
    that is damaged and a question that the run's tokenizer cannot write."""
    turn = Turn(role=Role.user, content=(0, "\n", *question))
    try:
        prompt = run.encoder.prompt_ids((turn,), (picture,))
    except RecordFault as fault:
        raise DataError(f"the question cannot be asked: {fault}") from fault
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
