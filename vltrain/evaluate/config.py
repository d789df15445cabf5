"""Config of evaluation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class EvaluateConfig:
    max_samples: int = 200
    """Held-out records of each source that are evaluated, evenly spread over its shards."""
    batch_records: int = 16
    max_new_tokens: int = 24
    """Longest answer to a question. One with a box takes 30 and more."""
    iou_threshold: float = 0.5
    """Intersection over union from which a box of an answer is right: as RefCOCO's accuracy is
    published (Mao et al., arXiv 1511.02283)."""
    choice_samples: int = 200
    """Caption records of each source that are put to the picture-to-caption choice, which costs
    ``choices`` times a loss."""
    choices: int = 10
    """Candidates of the picture-to-caption choice."""
    blank_control: bool = True
    """Repeat every visual figure with the picture blanked."""
