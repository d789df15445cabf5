"""Config of latent attention and of a mixture of experts. Values live in conf/model/; sizes follow
the published configs (facts 2.4)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Scoring(str, Enum):
    """How a router's logits become scores."""

    softmax = "softmax"  # VL2-Tiny and Small
    sigmoid = "sigmoid"  # VL2-Base


class Selection(str, Enum):
    """How a router chooses experts by their scores."""

    greedy = "greedy"  # the highest scores
    noaux_tc = "noaux_tc"  # the highest scores plus a correction that evens out the load


class ExpertsKind(str, Enum):
    """How the routed experts are computed; the same numbers."""

    grouped = "grouped"  # one grouped matrix product for all experts
    reference = "reference"  # expert by expert


@dataclass
class MlaConfig:
    """Multi-head latent attention: keys and values from a common low-rank state, and a part of the
    head with rotary positions (queries are not compressed in VL2)."""

    kv_rank: int = 512
    nope_dim: int = 128
    rope_dim: int = 64
    value_dim: int = 128


@dataclass
class MoeConfig:
    """Mixture of experts, by default DeepSeek-VL2-Small's (Table 1; none routes in groups)."""

    experts: int = 64
    per_token: int = 6
    shared: int = 2
    """Experts that every token sees, computed as one of so many times the width."""
    ffn: int = 1408
    """Of one expert; ``language.ffn`` is the dense layers'."""
    dense_layers: int = 1
    """The first layers, which have no experts."""
    scoring: Scoring = Scoring.softmax
    selection: Selection = Selection.greedy
    normalise_weights: bool = False
    """True: the chosen experts' weights sum to 1 (before ``scale``)."""
    scale: float = 1.0
    """Factor of the routed experts' weights."""


@dataclass
class RouterConfig:
    """How routers learn to spread the load (DeepSeek-VL2 Table 2). Nothing here changes what the
    model computes."""

    penalty_weight: float = 0.0
    """Of the sequence-level balance loss, summed over layers."""
    correction_step: float = 0.0
    """How far noaux_tc's corrections move after each update; 0 leaves them."""
