"""What a run is, in digests and its seed: what a checkpoint must agree with to be continued or
started from."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from typing import Any

import xxhash
import yaml

from vltrain import distributed
from vltrain.checkpoint.handoff import Expected
from vltrain.checkpoint.store import Checkpoint
from vltrain.errors import CheckpointError
from vltrain.inspection.difference import value_differences
from vltrain.models.config import ModelConfig
from vltrain.processing.encode import Encoder
from vltrain.runconfig import Accept, RunConfig, to_yaml

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
"""The resolved config, in the run directory and in each checkpoint."""
SHOWN = 12
"""Changed keys that a message shows."""

NOT_THE_MODEL = (
    "name",
    "weights",
    "tokenizer",
    "attention",
    "experts",
    "router",
    "loss_chunk_tokens",
    "activation_checkpointing",
    "encode_images_at_once",
    "image_rounding",
)
"""Fields of the model config that change where or how it is computed, not what it is."""

_CAUSES = {
    Accept.stage: ("stage.",),
    Accept.seed: ("run.seed",),
    Accept.recipe: (
        *("data.", "stage.learn", "stage.template", "stage.system_prompt", "model.tokenizer"),
    ),
    Accept.model: ("model.",),
    Accept.tokenizer: ("model.tokenizer", "model.image_token", "model.weights.language"),
}
"""Where in the config a difference comes from."""
_NO_CAUSES = (
    *(
        "data.held_out",
        "data.loader",
        "data.faults",
        "data.remote",
        "data.decode",
        "data.batch.micro",
    ),
    *(f"model.{name}" for name in NOT_THE_MODEL if name not in ("tokenizer", "weights")),
)


def model_digest(config: ModelConfig) -> str:
    """xxh3-128 hex over the fields that make the model what it is. What a model does not have
    (null) is left out, so that a kind of part that was added later changes no other model."""
    fields = _present({k: v for k, v in asdict(config).items() if k not in NOT_THE_MODEL})
    return xxhash.xxh3_128_hexdigest(json.dumps(fields, sort_keys=True, default=str).encode())


def _present(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _present(value) if isinstance(value, dict) else value
        for key, value in fields.items()
        if value is not None
    }


def expected_of(config: RunConfig, encoder: Encoder) -> Expected:
    """What a checkpoint must have been trained with for its weights to be of use here."""
    return Expected(
        tokenizer_digest=encoder.tokenizer.digest,
        image_token_id=config.model.image_token_id,
        geometry=encoder.geometry.digest_fields(),
        model_digest=model_digest(config.model),
    )


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a checkpoint must agree with to be continued."""

    recipe: str
    model: str
    tokenizer: str
    seed: int


def refuse_other(config: RunConfig, identity: Identity, checkpoint: Checkpoint) -> set[Accept]:
    """Raise CheckpointError showing what differs from the checkpoint and is not named in
    ``resume.accept``; return what differs and is, warning of it."""
    manifest = checkpoint.manifest
    pairs = {
        Accept.stage: (manifest.stage.get("number"), config.stage.number),
        Accept.seed: (manifest.seed, identity.seed),
        Accept.recipe: (manifest.recipe_digest, identity.recipe),
        Accept.model: (manifest.model_digest, identity.model),
        Accept.tokenizer: (manifest.tokenizer_digest, identity.tokenizer),
    }
    different = {what for what, (found, now) in pairs.items() if found != now}
    told = [
        f"{what.value}: {pairs[what][0]} there, {pairs[what][1]} here"
        + _told(_changes(checkpoint, config, what))
        for what in pairs
        if what in different
    ]
    if refused := different - set(config.resume.accept):
        names = ",".join(what.value for what in pairs if what in different)
        raise CheckpointError(
            "this run directory has a checkpoint of another run. "
            + "\n".join(told)
            + f"\nNot in resume.accept: {', '.join(w.value for w in pairs if w in refused)}. Give "
            "another run.name, or the config that the run began with (config.yaml in the "
            f"checkpoint), or resume.accept=[{names}] if the change is meant; ranks, "
            "micro-batch, workers and engine may always change"
        )
    for line in told:
        log.warning("accepted: %s", line)
    return different


def warn_of_changes(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Say what a run that goes on does otherwise and is not refused for: other numbers of the
    optimizer; and another start, which is not read: nearly always another run was meant."""
    there, here = _written(checkpoint, config)
    if not there or not distributed.is_first():
        return
    began, given = there.get("init_from"), here.get("init_from")
    if given is not None and given != began:
        log.warning(
            "init_from=%s is not read: %s goes on from its step %d, and began from %s. Give "
            "another run.name to start anew",
            config.init_from,
            checkpoint.directory,
            checkpoint.manifest.step,
            began or "published weights",
        )
    if changes := _differences(there, here, prefixes=("optim.",)):
        log.warning("goes on with other values%s", _told(changes))


def _written(checkpoint: Checkpoint, config: RunConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configs that the checkpoint was written with and that we have; nothing for one that
    cannot be read."""
    path = checkpoint.directory / CONFIG
    if not path.is_file():
        return {}, {}
    try:
        there = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        return {}, {}
    return there, yaml.safe_load(to_yaml(config))


def _changes(checkpoint: Checkpoint, config: RunConfig, what: Accept) -> list[str]:
    """The config's keys that may be behind a difference, with both values."""
    there, here = _written(checkpoint, config)
    return _differences(there, here, prefixes=_CAUSES[what])


def _differences(
    there: dict[str, Any], here: dict[str, Any], *, prefixes: tuple[str, ...]
) -> list[str]:
    return [
        difference.words()
        for difference in value_differences(there, here)
        if difference.key.startswith(prefixes) and not difference.key.startswith(_NO_CAUSES)
    ]


def _told(changes: list[str]) -> str:
    if not changes:
        return ""
    more = f"; and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
    return f" ({'; '.join(changes[:SHOWN])}{more})"
