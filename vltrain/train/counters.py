"""What a run has seen so far: sums that only grow, the same on every rank, kept in the
checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from vltrain.data.config import RatioUnit


def _per_modality() -> dict[str, int]:
    return {"language": 0, "multimodal": 0}


@dataclass
class Counters:
    """Realised totals over all ranks since the stage began (holes excluded)."""

    tokens: dict[str, int] = field(default_factory=_per_modality)
    planned_tokens: dict[str, int] = field(default_factory=_per_modality)
    supervised: dict[str, int] = field(default_factory=_per_modality)
    samples: dict[str, int] = field(default_factory=_per_modality)  # pieces
    images: int = 0
    packs: int = 0
    holes: int = 0
    skipped_steps: int = 0

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict) -> Counters:
        """Raises TypeError on an unknown field: the manifest's schema number guards the format."""
        return cls(**stored)

    def language_share(self, unit: RatioUnit) -> float | None:
        """Realised share of language in the mixture's unit; None before the first step."""
        counted = {
            RatioUnit.tokens: self.tokens,
            RatioUnit.samples: self.samples,
            RatioUnit.supervised_tokens: self.supervised,
        }[unit]
        total = sum(counted.values())
        return counted["language"] / total if total else None
