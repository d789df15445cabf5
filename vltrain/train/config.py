"""Config of a stage. Values live in conf/stage/N.yaml; the rules that guard them in stages/."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from vltrain.batch import Learn


@dataclass
class StageConfig:
    """What differs between the stages, as data."""

    number: int = MISSING
    name: str = MISSING
    trainable: list[str] = field(default_factory=list)
    """Parts that train: sam, siglip, adaptor, language. The stage's policy guards the list."""
    freeze: list[str] = field(default_factory=list)
    """Patterns over parameter names inside the trainable parts that stay frozen all the same, such
    as language.model.embed_tokens.*; one that matches nothing is an error."""
    learn: Learn = MISSING
    """What is learned of a record where its source does not say otherwise."""
    system_prompt: str | None = None
    """System text put before conversations that bring none."""
