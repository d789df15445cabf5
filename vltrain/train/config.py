"""Config of a stage and of how it bears trouble. A stage's values live in conf/stage/N.yaml; the
rules that guard them in stages/."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from vltrain.batch import Learn, Template
from vltrain.processing.grounding import BoxRounding


@dataclass
class StageConfig:
    """What differs between the stages, as data."""

    number: int = MISSING
    name: str = MISSING
    trainable: list[str] = field(default_factory=list)
    """Parts that train: sam, siglip, vit, adaptor, language. The stage's policy guards the list."""
    freeze: list[str] = field(default_factory=list)
    """Patterns over parameter names inside the trainable parts that stay frozen all the same, such
    as language.model.embed_tokens.*; one that matches nothing is an error."""
    learn: Learn = MISSING
    """What is learned of a record where its source does not say otherwise."""
    template: Template = Template.deepseek
    box_rounding: BoxRounding = BoxRounding.nearest
    """Of a box's place in its image to one of 1,000 coordinates (not published)."""
    without: list[int] = field(default_factory=list)
    """Stages of the paper that came before this one and are left out on purpose (Table 9): [2] in
    stage 3 starts it from a run of stage 1, [1] in stage 2 from an adaptor that is new."""
    system_prompt: str | None = None
    """System text put before conversations that bring none."""


@dataclass
class StabilityConfig:
    """What is done about a loss that is not finite or that jumps. Rows of skipped steps say so."""

    skip_budget: int = 3
    """Steps that are not finite and are skipped, within skip_window_steps; one more goes back."""
    skip_window_steps: int = 100
    rollbacks: int = 2
    """How often, in the whole stage, the weights of the last good checkpoint go on with the data
    that follows; the time after that they are saved and the run stops. 0: the first time."""
    spike_deviations: float = 10.0
    """A finite loss this many (robust) standard deviations above the median of the last steps of
    its modality is warned of and recorded; 0 is silent."""
    spike_window_steps: int = 100
    label_share_deviations: float = 10.0
    """The same alarm for the share of a step's tokens that are learned, in both directions, over
    the same window; 0 is silent. (That each record has the labels that were planned is checked
    when it is read; this is for a mix or a mask that changes under way.)"""
