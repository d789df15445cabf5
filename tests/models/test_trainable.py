from __future__ import annotations

import pytest

from vltrain.errors import ConfigError
from vltrain.models.trainable import PartCount, describe, part_of


def test_stage_one_trains_exactly_these_tensors(tiny, build):
    assert build(tiny, trainable=["adaptor"]).trainable == (
        "adaptor.alpha",
        "adaptor.neck.conv1.weight",
        "adaptor.neck.layer_norm1.weight",
        "adaptor.neck.layer_norm1.bias",
        "adaptor.neck.conv2.weight",
        "adaptor.neck.layer_norm2.weight",
        "adaptor.neck.layer_norm2.bias",
        "adaptor.downsample.conv1.weight",
        "adaptor.downsample.conv2.weight",
        "adaptor.aligner.vision_proj.weight",
        "adaptor.aligner.vision_proj.bias",
        "adaptor.aligner.high_res_vision_proj.weight",
        "adaptor.aligner.high_res_vision_proj.bias",
        "adaptor.aligner.proj.weight",
        "adaptor.aligner.proj.bias",
    )


def test_sams_own_neck_trains_with_the_adaptor_on_request(config_of, build):
    config = config_of("tiny", {"adaptor": {"train_sam_neck": True}})
    built = build(config, trainable=["adaptor"])
    own = [name for name in built.trainable if name.startswith("adaptor.sam_neck.")]
    assert len(own) == 6
    assert not any("neck" in name for name in built.part_state("sam"))


def test_a_pattern_freezes_what_it_matches(tiny, build):
    built = build(tiny, trainable=["language"], freeze=["language.model.layers.0.*"])
    frozen = [n for n, p in built.module.named_parameters() if not p.requires_grad]
    assert "language.model.layers.0.mlp.up_proj.weight" in frozen
    assert "language.model.layers.1.mlp.up_proj.weight" in built.trainable
    assert set(built.trainable).isdisjoint(frozen)


def test_a_pattern_that_matches_nothing_is_refused(tiny, build):
    with pytest.raises(ConfigError, match=r"'language\.layers\.\*' matches no parameter") as error:
        build(tiny, trainable=["language"], freeze=["language.layers.*"])
    assert "language.model.layers.0.self_attn" in str(error.value)


def test_patterns_that_freeze_a_whole_part_are_refused(tiny, build):
    with pytest.raises(ConfigError, match="'adaptor' is trainable, but the freeze patterns"):
        build(tiny, trainable=["adaptor", "language"], freeze=["adaptor.*"])


def test_an_unknown_part_lists_the_parts(tiny, siglip_only, build):
    with pytest.raises(ConfigError, match=r"'vision'.* are sam, siglip, adaptor, language"):
        build(tiny, trainable=["vision"])
    with pytest.raises(ConfigError, match=r"'sam'.* are siglip, adaptor, language"):
        build(siglip_only, trainable=["sam"])


def test_counts_per_part(tiny, build):
    built = build(tiny, trainable=["adaptor"])
    assert describe([built.module, built.frozen]) == (
        PartCount(part="sam", parameters=37216, trainable=0),
        PartCount(part="siglip", parameters=23840, trainable=0),
        PartCount(part="adaptor", parameters=33217, trainable=33217),
        PartCount(part="language", parameters=147776, trainable=0),
    )


def test_part_of_is_the_first_word():
    assert part_of("siglip.encoder.layers.0.mlp.fc1.bias") == "siglip"
