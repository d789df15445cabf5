"""The proof that what is frozen did not change, where it did."""

from __future__ import annotations

import pytest

from vltrain.assemble.frozen import FrozenDigests, refuse_changed
from vltrain.errors import WeightsError

BEFORE = FrozenDigests(tensors={"sam.a": "1", "sam.b": "2", "siglip.c": "3"})


def test_the_same_digests_are_accepted() -> None:
    refuse_changed(BEFORE, FrozenDigests(tensors=dict(BEFORE.tensors)))


def test_what_changed_is_named() -> None:
    after = FrozenDigests(tensors={"sam.a": "1", "sam.b": "9", "siglip.d": "3"})
    said = r"3 frozen tensors changed while training: sam\.b, siglip\.c, siglip\.d\. Do not use"
    with pytest.raises(WeightsError, match=said):
        refuse_changed(BEFORE, after)
    assert BEFORE.of_part("sam") != after.of_part("sam")
    assert BEFORE.of_part("adaptor") is None
