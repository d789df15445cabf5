from __future__ import annotations

import itertools

import numpy as np

from vltrain.data.digest import chain, pack_digest, step_digest

IDS = np.array([0, 5, 6, 1], dtype=np.int32)
PIECES = [("s:0.tar:a", IDS, [b"png"]), ("s:0.tar:b", IDS[:2], [])]


def test_equal_content_gives_equal_digests():
    copied = [(key, ids.astype(np.int64), list(images)) for key, ids, images in PIECES]
    assert pack_digest(7, PIECES) == pack_digest(7, copied)
    assert len(pack_digest(7, PIECES)) == 16


def test_everything_counts():
    variants = [
        (7, PIECES),
        (8, PIECES),
        (7, PIECES[::-1]),
        (7, PIECES[:1]),
        (7, []),
        (7, [("s:0.tar:x", IDS, [b"png"]), PIECES[1]]),
        (7, [("s:0.tar:a", IDS + 1, [b"png"]), PIECES[1]]),
        (7, [("s:0.tar:a", IDS, [b"jpg"]), PIECES[1]]),
        (7, [("s:0.tar:a", IDS, [b"pn", b"g"]), PIECES[1]]),
        (7, [("s:0.tar:a", IDS, []), PIECES[1]]),
        (7, [("s:0.tar:a", None, []), PIECES[1]]),
        (7, [("s:0.tar:a", IDS[:0], []), PIECES[1]]),
    ]
    digests = [pack_digest(number, pieces) for number, pieces in variants]
    for one, other in itertools.combinations(digests, 2):
        assert one != other


def test_step_digest_is_in_order():
    a, b = bytes(16), bytes(range(16))
    assert step_digest([a, b]) != step_digest([b, a])
    assert step_digest([a]) != step_digest([a, a])
    assert len(step_digest([])) == 32


def test_chain_depends_on_the_past_and_the_step():
    one = chain("", 1, "aa")
    assert one == chain("", 1, "aa")
    heads = {one, chain("", 2, "aa"), chain("", 1, "ab"), chain(one, 1, "aa"), chain(one, 2, "aa")}
    assert len(heads) == 5


def test_known_values():
    # Written into checkpoints and steps.jsonl: a change breaks every resume.
    assert pack_digest(7, PIECES).hex() == "a3e629e8a2862154bbad1c16aa97f0fb"
    assert chain("", 1, "aa") == "9f341183538e6a6d59d846139fe27f34"
