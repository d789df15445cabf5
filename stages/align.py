"""Stage 1, alignment: the adaptor learns to speak to a frozen language model.

DeepSeek-VL 3.2.1: image-text pairs; vision encoders and language model frozen. Which tensors the
adaptor is: the second neck, the two down-sampling convolutions and alpha, which turn SAM's states
into 576 visual tokens and are new weights, and the MLP. SAM's own neck is pretrained and stays with
SAM unless model.adaptor.train_sam_neck asks for what the released code would train (facts 1.2).

DeepSeek-VL2 4.1: the vision encoder trains too, because tiles are new to it.
"""

from __future__ import annotations

from stages.policy import StagePolicy, needs_language_sources
from vltrain.batch import Learn, RecordKind, Template

ALIGN = StagePolicy(
    number=1,
    name="align",
    may_train={
        "deepseek_vl": frozenset({"adaptor"}),
        "deepseek_vl2": frozenset({"siglip", "adaptor"}),
    },
    must_train={
        "deepseek_vl": frozenset({"adaptor"}),
        "deepseek_vl2": frozenset({"siglip", "adaptor"}),
    },
    predecessors=frozenset({0}),
    may_be_new=frozenset({"adaptor"}),
    records=frozenset({RecordKind.caption}),
    learns=frozenset({Learn.all}),
    templates={
        "deepseek_vl": frozenset({Template.deepseek, Template.plain, Template.alignment}),
        "deepseek_vl2": frozenset({Template.deepseek_vl2, Template.plain, Template.alignment}),
    },
    checks=(needs_language_sources,),
)
