"""How much of each modality, category and source: shares, their ramp, and the loop that holds them.

In: the sources' config. Out: a weight for every source inside its modality, the language share of
every step, and ``Balance``, the running account that says whether language is behind. Shares are
held by counting what was given, not by drawing lots: whatever the lengths are, the account closes.

Shares are whole millionths and accounts are whole numbers, so nothing rounds and nothing drifts,
and two machines never disagree. Rejected: sampling sources at random (the error grows as the square
root of the count); converting shares to sample probabilities by mean lengths (wrong when lengths
change).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vltrain.batch import Modality
from vltrain.data.config import MixtureConfig, RampKind, SourceConfig
from vltrain.errors import ConfigError

WHOLE = 10**6
"""Shares are integers out of this; so the accounts of 10^12 tokens still fit 64 bits."""


@dataclass(slots=True)
class Balance:
    """Running account of the language share, in units of the mixture.

    target: sum over all that was counted of share x units (times WHOLE); language: units of
    language among them. A share that changes with time is never paid back: each unit is owed the
    share of its own moment.
    """

    target: int = 0
    language: int = 0

    @property
    def language_is_owed(self) -> int:
        """Language units that are missing (times WHOLE); negative where there were too many."""
        return self.target - self.language * WHOLE

    def language_comes_next(self, share: int) -> bool:
        """Where single samples or packs are chosen: what is owed; an even account goes by the
        share."""
        owed = self.target - self.language * WHOLE
        return owed > 0 or (owed == 0 and 2 * share >= WHOLE)

    def count(self, share: int, *, units: int, language_units: int) -> None:
        self.target += share * units
        self.language += language_units


def language_share(step: int, *, tokens: int, mixture: MixtureConfig) -> int:
    """Language share that a step aims at, in millionths. ``tokens``: planned before it.

    The ramp leads from ``ramp.start_share`` at step 0 to ``language_share`` at step ``ramp.steps``,
    or where ``ramp.tokens`` are planned (DeepSeek-VL 4.4; shape and length are not published).
    """
    final, ramp = mixture.language_share, mixture.ramp
    reached, length = (tokens, ramp.tokens) if ramp.tokens else (step, ramp.steps)
    if ramp.kind is RampKind.none or reached >= length:
        return round(final * WHOLE)
    done = reached / length
    if ramp.kind is RampKind.cosine:
        done = (1.0 - math.cos(math.pi * done)) / 2.0
    return round((ramp.start_share + (final - ramp.start_share) * done) * WHOLE)


def modalities_in_use(mixture: MixtureConfig) -> tuple[Modality, ...]:
    """The modalities that some step of the run draws."""
    shares = [mixture.language_share]
    if mixture.ramp.kind is not RampKind.none and (mixture.ramp.steps or mixture.ramp.tokens):
        shares.append(mixture.ramp.start_share)
    used = []
    if any(share > 0 for share in shares):
        used.append(Modality.language)
    if any(share < 1 for share in shares):
        used.append(Modality.multimodal)
    return tuple(used)


def source_weights(
    sources: Mapping[str, SourceConfig], mixture: MixtureConfig
) -> dict[Modality, dict[str, float]]:
    """Share of each source inside its modality, for the modalities that the run draws.

    Weights nest: the categories of a modality share it by ``mixture.category_weights`` (1 where a
    category is not named), the sources of a category share that by their ``weight``. Sources of
    weight 0 are left out. Raises ConfigError for unknown categories and for weights or shares that
    are negative, not finite or all zero.
    """
    _check_numbers(sources, mixture)
    weights: dict[Modality, dict[str, float]] = {}
    for modality in modalities_in_use(mixture):
        members = {name: s for name, s in sources.items() if s.modality is modality}
        if not members:
            raise ConfigError(
                f"data.mixture asks for {modality.value} data (language_share="
                f"{mixture.language_share}, ramp {mixture.ramp.kind.value} from "
                f"{mixture.ramp.start_share}), but no source in data.sources has modality="
                f"{modality.value}. Add one, or set data.mixture.language_share to "
                f"{0.0 if modality is Modality.language else 1.0} without a ramp."
            )
        weights[modality] = _nested_weights(members, mixture, modality)
    return weights


def _nested_weights(
    members: Mapping[str, SourceConfig], mixture: MixtureConfig, modality: Modality
) -> dict[str, float]:
    categories = {
        s.category: mixture.category_weights.get(s.category, 1.0) for s in members.values()
    }
    total = sum(categories.values())
    if total == 0:
        raise ConfigError(
            f"every {modality.value} category weighs 0 in data.mixture.category_weights "
            f"({', '.join(sorted(categories))}), so nothing {modality.value} can be drawn. Give at "
            "least one a positive weight."
        )
    shares: dict[str, float] = {}
    for category, category_weight in categories.items():
        leaves = {name: s.weight for name, s in members.items() if s.category == category}
        leaf_total = sum(leaves.values())
        if category_weight > 0 and leaf_total == 0:
            raise ConfigError(
                f"every source of the {modality.value} category '{category}' has weight 0 "
                f"({', '.join(sorted(leaves))}). Give one a positive weight, or set "
                f"data.mixture.category_weights.{category}=0."
            )
        for name, weight in leaves.items():
            if weight > 0 and category_weight > 0:
                shares[name] = (category_weight / total) * (weight / leaf_total)
    return shares


def _check_numbers(sources: Mapping[str, SourceConfig], mixture: MixtureConfig) -> None:
    if not sources:
        raise ConfigError("data.sources is empty: name at least one source (see conf/data/).")
    known = sorted({s.category for s in sources.values()})
    unknown = sorted(set(mixture.category_weights) - set(known))
    if unknown:
        raise ConfigError(
            f"data.mixture.category_weights names {', '.join(map(repr, unknown))}, which no source "
            f"belongs to. Categories of the sources: {', '.join(known)}."
        )
    named = {f"data.sources.{name}.weight": s.weight for name, s in sources.items()}
    named |= {
        f"data.mixture.category_weights.{name}": weight
        for name, weight in mixture.category_weights.items()
    }
    for where, weight in named.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"{where}={weight}: a weight is a number of 0 or more.")
    for where, share in (
        ("data.mixture.language_share", mixture.language_share),
        ("data.mixture.ramp.start_share", mixture.ramp.start_share),
    ):
        if not 0 <= share <= 1:
            raise ConfigError(f"{where}={share}: a share lies between 0 and 1.")
    ramp = mixture.ramp
    for where, length in (("steps", ramp.steps), ("tokens", ramp.tokens)):
        if length < 0:
            raise ConfigError(f"data.mixture.ramp.{where}={length}: must be 0 or more.")
    if ramp.steps and ramp.tokens:
        raise ConfigError(
            f"data.mixture.ramp.steps={ramp.steps} and data.mixture.ramp.tokens={ramp.tokens}: the "
            "ramp has one length. Set one of them to 0."
        )
