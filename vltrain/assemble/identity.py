"""What a run is, in digests and its seed: what a checkpoint must agree with to be continued or
started from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import xxhash

from vltrain.checkpoint.handoff import Expected
from vltrain.checkpoint.manifest import Manifest
from vltrain.errors import CheckpointError
from vltrain.models.config import ModelConfig
from vltrain.processing.encode import Encoder
from vltrain.runconfig import RunConfig

NOT_THE_MODEL = (
    "name",
    "weights",
    "tokenizer",
    "attention",
    "loss_chunk_tokens",
    "activation_checkpointing",
    "encode_images_at_once",
)
"""Fields of the model config that change where or how it is computed, not what it is."""


def model_digest(config: ModelConfig) -> str:
    """xxh3-128 hex over the fields that make the model what it is."""
    fields = {k: v for k, v in asdict(config).items() if k not in NOT_THE_MODEL}
    return xxhash.xxh3_128_hexdigest(json.dumps(fields, sort_keys=True, default=str).encode())


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

    def refuse_other(self, manifest: Manifest, *, stage: int) -> None:
        """Raise CheckpointError showing each difference."""
        pairs = (
            ("stage.number", manifest.stage.get("number"), stage),
            ("run.seed", manifest.seed, self.seed),
            ("data recipe", manifest.recipe_digest, self.recipe),
            ("model", manifest.model_digest, self.model),
            ("tokenizer", manifest.tokenizer_digest, self.tokenizer),
        )
        different = [
            f"{what}: {found} there, {now} here" for what, found, now in pairs if found != now
        ]
        if different:
            raise CheckpointError(
                "this run directory has a checkpoint of another run: "
                f"{'; '.join(different)}. Give another run.name, or the config that the run began "
                "with (its config.yaml); ranks, micro-batch, workers and engine may change, the "
                "data, the seed, the model and the stage may not"
            )
