"""summary.json: round trip, and when a frozen part counts as unchanged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vltrain.errors import DataError
from vltrain.metrics.summary import PartSummary, StageSummary, read_summary, write_summary

LANGUAGE = PartSummary(
    part="language",
    parameters=1000,
    trainable=0,
    trained_tensors=(),
    frozen_tensors=12,
    frozen_digest_before="aa",
    frozen_digest_after="aa",
)
SUMMARY = StageSummary(
    number=1, name="align", steps=10, init_from="warm start", parts=(LANGUAGE,), notes=("said",)
)


def test_a_summary_comes_back_as_it_went(tmp_path):
    write_summary(tmp_path, summary=SUMMARY)
    assert read_summary(tmp_path) == SUMMARY
    assert read_summary(tmp_path / "none") is None


def test_unchanged_needs_both_digests():
    assert LANGUAGE.is_frozen_unchanged is True
    assert replace(LANGUAGE, frozen_digest_after="bb").is_frozen_unchanged is False
    assert replace(LANGUAGE, frozen_digest_after=None).is_frozen_unchanged is None
    assert replace(LANGUAGE, frozen_tensors=0).is_frozen_unchanged is None


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 3}'])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(DataError, match=r"summary\.json: expected a"):
        read_summary(tmp_path)
