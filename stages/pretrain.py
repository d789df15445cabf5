"""Stage 2, joint pretraining: language model and adaptor learn on language and pictures at 7 : 3.

DeepSeek-VL 3.2.2 and 4.4: both towers frozen; the language share falls from 1 to its target
(modality warm-up) and each global step is all one modality (grouping), so that language ability
survives. A small share of SFT records is allowed, as in the paper. In DeepSeek-VL2 (4.1) the
vision encoder trains too, on 3 : 7.
"""

from __future__ import annotations

from stages.policy import StagePolicy, needs_language_sources
from vltrain.batch import Learn, RecordKind, Template

PRETRAIN = StagePolicy(
    number=2,
    name="pretrain",
    may_train={
        "deepseek_vl": frozenset({"adaptor", "language"}),
        "deepseek_vl2": frozenset({"siglip", "adaptor", "language"}),
    },
    must_train={
        "deepseek_vl": frozenset({"adaptor", "language"}),
        "deepseek_vl2": frozenset({"siglip", "adaptor", "language"}),
    },
    predecessors=frozenset({0, 1}),
    may_be_new=frozenset(),
    records=frozenset(RecordKind),
    learns=frozenset({Learn.all}),
    templates={
        "deepseek_vl": frozenset({Template.deepseek, Template.plain, Template.alignment}),
        "deepseek_vl2": frozenset({Template.deepseek_vl2, Template.plain, Template.alignment}),
    },
    checks=(needs_language_sources,),
)
