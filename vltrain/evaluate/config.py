"""Config of evaluation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class EvaluateConfig:
    max_samples: int = 200
    """Held-out records of each source that are evaluated, evenly spread over its shards."""
    batch_records: int = 16
    max_new_tokens: int = 24
    choice_samples: int = 200
    """Caption records of each source that are put to the picture-to-caption choice, which costs
    ``choices`` times a loss."""
    choices: int = 10
    """Candidates of the picture-to-caption choice."""
    blank_control: bool = True
    """Repeat every visual figure with the picture blanked."""
