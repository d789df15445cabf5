"""What the log shows of a source's first record."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vltrain.assemble.recording import SHOWN_TOKENS, mark_learned
from vltrain.batch import Example, Origin, StoredImage

IMAGE = 0


class Letters:
    """1 is a, 2 is b, ..."""

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(96 + i) for i in ids)


def marked(ids: Sequence[int], learned: Sequence[int], starts: Sequence[int], each: int) -> str:
    image = StoredImage(member="0.png", data=b"", width=8, height=8)
    example = Example(
        origin=Origin(source="s", shard="0.tar", key="k"),
        ids=np.asarray(ids, dtype=np.int32),
        learned=np.asarray(learned, dtype=bool),
        image_starts=np.asarray(starts, dtype=np.int32),
        image_tokens=np.full(len(starts), each, dtype=np.int32),
        images=(image,) * len(starts),
    )
    return mark_learned(example, Letters())  # type: ignore[arg-type]


def test_learned_runs_stand_in_brackets_and_images_by_their_size() -> None:
    ids = [1, 2, IMAGE, IMAGE, IMAGE, 3, 4, 5, 6]
    learned = [1, 0, 0, 0, 0, 0, 1, 1, 0]  # the first token is never a target
    assert marked(ids, learned, [2], 3) == "'ab<image x3>c[de]f'"


def test_images_beside_each_other_and_a_learned_run_up_to_one() -> None:
    ids = [1, 2, IMAGE, IMAGE, IMAGE, IMAGE, 3]
    assert marked(ids, [0, 1, 0, 0, 0, 0, 1], [2, 4], 2) == "'a[b]<image x2><image x2>[c]'"


def test_a_long_record_is_cut_after_its_first_words() -> None:
    shown = marked([1] * (SHOWN_TOKENS + 1), [0] * (SHOWN_TOKENS + 1), [], 0)
    assert shown == f"'{'a' * SHOWN_TOKENS} ...'"


def test_an_answer_far_behind_is_what_is_shown() -> None:
    """Images of 3 end inside the window, which begins after the one that it would cut."""
    half = SHOWN_TOKENS // 2
    question = [1] * 200 + [IMAGE] * 3 + [2] * (half - 2)
    ids = [*question, 3, 3, *[4] * 300]
    learned = [i == 3 for i in ids]
    shown = marked(ids, learned, [200], 3)
    assert shown == f"'... {'b' * (half - 2)}[cc]{'d' * (half - 2)} ...'"
