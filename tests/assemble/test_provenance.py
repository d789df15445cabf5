"""What a manifest says of the data and of the stages before."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from checkpoint_samples import manifest

from vltrain.assemble.provenance import data_record, lineage, stage_record
from vltrain.batch import Modality, RecordKind
from vltrain.checkpoint.store import Checkpoint
from vltrain.data.config import DataConfig, MixtureConfig, SourceConfig
from vltrain.runconfig import RunConfig


def source(path: Path, *, weight: float, modality: Modality, licence: str = "") -> SourceConfig:
    return SourceConfig(
        path=str(path),
        kind=RecordKind.caption,
        modality=modality,
        weight=weight,
        licence=licence,
    )


def test_sources_with_their_shares_and_what_their_cards_say(tmp_path: Path) -> None:
    card = {"name": "birds", "source": "a museum", "licence": "CC0", "attribution": "By them."}
    (tmp_path / "card.json").write_text(json.dumps(card))
    seen = Modality.multimodal
    sources = {
        "birds": source(tmp_path, weight=1.0, modality=seen),
        "one": source(tmp_path / "one-0000.tar", weight=3.0, modality=seen, licence="MIT"),
        "books": source(tmp_path / "nowhere" / "x.tar", weight=1.0, modality=Modality.language),
    }
    mixture = MixtureConfig(language_share=0.5)
    found = data_record(RunConfig(data=DataConfig(sources=sources, mixture=mixture)))
    assert found["birds"] == {
        "kind": "caption",
        "modality": "multimodal",
        "share": 0.25,
        "licence": "CC0",
        "source": "a museum",
        "attribution": "By them.",
    }
    assert (found["one"]["share"], found["one"]["licence"]) == (0.75, "MIT")
    assert found["one"]["source"] == "a museum"
    assert (found["books"]["share"], found["books"]["licence"]) == (1.0, "")


def test_the_stages_before_travel_with_the_weights(tmp_path: Path) -> None:
    first = Checkpoint(directory=tmp_path, manifest=manifest(10, data={"birds": {}}))
    assert lineage(None, predecessor=None) == []
    before = lineage(None, predecessor=first)
    assert before == [stage_record(first.manifest)]
    assert (before[0]["step"], before[0]["data"]) == (10, {"birds": {}})
    second = manifest(20, stage={"number": 2, "name": "pretrain"}, lineage=before)
    later = Checkpoint(directory=tmp_path, manifest=second)
    assert [s["stage"]["number"] for s in lineage(None, predecessor=later)] == [1, 2]
    resumed = dataclasses.replace(later, manifest=dataclasses.replace(second, step=30))
    assert lineage(resumed, predecessor=resumed) == before  # its own stage is not before it
    json.dumps(lineage(None, predecessor=later))
