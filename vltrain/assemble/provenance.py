"""Where a run's weights come from, for the manifest: the data that each stage saw, with its
licences, and the stages before.

In: the config, the cards beside the shards, and the checkpoint that a stage starts from. Out:
JSON-able records. They travel from manifest to manifest, so that the last stage's checkpoint can
tell of all stages when data and earlier runs are out of reach.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vltrain.checkpoint.manifest import Manifest
from vltrain.checkpoint.store import Checkpoint
from vltrain.data.mixture import source_weights
from vltrain.evaluate.run_view import read_cards
from vltrain.runconfig import RunConfig


def data_record(config: RunConfig) -> dict[str, dict[str, Any]]:
    """By source: kind, modality, share of its modality as the mix weighs it (0 to 1), and what the
    card beside its shards says. ``licence`` is "" where nobody said one."""
    sources = config.data.sources
    shares = source_weights(sources, config.data.mixture)
    return {
        name: {
            "kind": source.kind.value,
            "modality": source.modality.value,
            "share": shares.get(source.modality, {}).get(name, 0.0),
            **_card(source.path, licence=source.licence),
        }
        for name, source in sources.items()
    }


def recipe_record(config: RunConfig) -> dict[str, Any]:
    """The numbers of the stage's recipe that a reader asks for first."""
    return {
        "steps": config.optim.steps,
        "lr": config.optim.lr,
        "schedule": config.optim.schedule.kind.value,
        "sequences": config.data.batch.sequences,
        "sequence_length": config.data.packing.sequence_length,
    }


def lineage(resumed: Checkpoint | None, *, predecessor: Checkpoint | None) -> list[dict[str, Any]]:
    """The stages before this one, first to last."""
    if resumed is not None:
        return resumed.manifest.lineage
    if predecessor is None:
        return []
    return [*predecessor.manifest.lineage, stage_record(predecessor.manifest)]


def stage_record(manifest: Manifest) -> dict[str, Any]:
    """What a manifest says of its own stage."""
    counters = manifest.counters
    return {
        "stage": manifest.stage,
        "run": manifest.run.get("name"),
        "step": manifest.step,
        "recipe": manifest.recipe,
        "sums": counters.get("sums", {}),
        "read": counters.get("faults", {}).get("read", {}),
        "data": manifest.data,
        "parts": {part: dataclasses.asdict(record) for part, record in manifest.parts.items()},
    }


def _card(path: str, *, licence: str) -> dict[str, str]:
    """Of the folder that holds the shards; a licence in the config stands above the card's."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    found = read_cards([folder])
    if not found:
        return {"licence": licence, "source": "", "attribution": ""}
    card = found[0]
    return {
        "licence": licence or card.licence,
        "source": card.source,
        "attribution": card.attribution,
    }
