"""A published vision tower's names and ours, for the part ``vit``.

In: the name of a tensor in a directory of CLIP, DINOv2 or the like: the tower alone, or inside a
model with a text tower or a classifier. Out: our full name. No table is needed, because the part
keeps transformers' own names.
"""

from __future__ import annotations

from dataclasses import dataclass

from vltrain.models.config import ModelConfig
from vltrain.models.vit import probe

_TOWER_SUFFIX = "_vision_model"


@dataclass(frozen=True, kw_only=True, slots=True)
class VitLayout:
    """names: the tower's parameters as transformers names them. prefixes: what may stand before
    them."""

    names: frozenset[str]
    prefixes: tuple[str, ...]

    def ours(self, theirs: str) -> str | None:
        """Our full name; None for what is not of the tower, or is no weight. KeyError for a tensor
        that the tower does not have."""
        for prefix in self.prefixes:
            if theirs.startswith(prefix):
                return self._of_the_tower(theirs.removeprefix(prefix), whole=theirs)
        first_words = {name.partition(".")[0] for name in self.names}
        if theirs.partition(".")[0] in first_words:
            return self._of_the_tower(theirs, whole=theirs)
        return None

    def _of_the_tower(self, name: str, *, whole: str) -> str | None:
        if name.endswith("position_ids"):  # a count from 0 that older files hold
            return None
        if name not in self.names:
            raise KeyError(whole)
        return f"vit.model.{name}"


def vit_layout(config: ModelConfig, *, model_type: str) -> VitLayout | None:
    """How a directory of ``model_type`` names this model's vit; None where it is none."""
    if config.vit is None:
        return None
    family = config.vit.model_type.removesuffix(_TOWER_SUFFIX)
    if model_type not in (config.vit.model_type, family):
        return None
    names = probe(config.vit).names
    return VitLayout(
        names=frozenset(name.removeprefix("model.") for name in names),
        prefixes=("vision_model.", "vision_tower.", f"{family}."),
    )
