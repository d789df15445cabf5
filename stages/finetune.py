"""Stage 3, supervised fine-tuning: language model, adaptor and SigLIP learn to answer.

DeepSeek-VL 3.2.3: SAM stays frozen (GPU memory); only answers and special tokens are supervised,
system and user prompts are masked; nearly half of the mix is text-only conversation. A tower that
stands in SigLIP's place (vit) may train as SigLIP does. In DeepSeek-VL2 (4.1) everything trains.
"""

from __future__ import annotations

from stages.policy import StagePolicy, needs_language_sources
from vltrain.batch import Learn, RecordKind, Template
from vltrain.errors import ConfigError
from vltrain.runconfig import RunConfig


def _masks_prompts(config: RunConfig) -> None:
    for name, source in config.data.sources.items():
        if source.learn is Learn.all:
            raise ConfigError(
                f"stage 3 (finetune): data.sources.{name}.learn=all would train on prompts; remove "
                "it or set learn=answers"
            )


FINETUNE = StagePolicy(
    number=3,
    name="finetune",
    may_train={
        "deepseek_vl": frozenset({"adaptor", "language", "siglip", "vit"}),
        "deepseek_vl2": frozenset({"adaptor", "language", "siglip"}),
    },
    must_train={
        "deepseek_vl": frozenset({"adaptor", "language"}),
        "deepseek_vl2": frozenset({"adaptor", "language", "siglip"}),
    },
    predecessors=frozenset({0, 2}),
    may_be_new=frozenset(),
    records=frozenset({RecordKind.conversation}),
    learns=frozenset({Learn.answers}),
    templates={
        "deepseek_vl": frozenset({Template.deepseek}),
        "deepseek_vl2": frozenset({Template.deepseek_vl2}),
    },
    checks=(needs_language_sources, _masks_prompts),
)
