"""One part as a published directory: stock classes load it, and so do we."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.sam.modeling_sam import SamVisionModel
from transformers.models.siglip.modeling_siglip import SiglipVisionModel

from vltrain.errors import ConfigError
from vltrain.models.build import build_model
from vltrain.models.export_part import export_part
from vltrain.models.layouts import LAYOUTS
from vltrain.models.weights import load_weights, tensor_digests


@pytest.mark.parametrize(
    ("part", "stock_class"),
    [
        ("sam", SamVisionModel),
        ("siglip", SiglipVisionModel),
        ("language", AutoModelForCausalLM),
    ],
)
def test_stock_class_and_our_loader_read_the_same_weights(tiny, build, tmp_path, part, stock_class):
    built = build(tiny)
    state = built.part_state(part)
    export_part(tmp_path, config=tiny, part=part, state=state)
    stock, report = stock_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    layout = LAYOUTS[stock.config.model_type]
    theirs = {layout.read(name).ours[0]: tensor for name, tensor in stock.state_dict().items()}
    assert theirs.keys() == state.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)
    again = build_model(
        tiny,
        trainable=["adaptor"],
        freeze=[],
        dtype=torch.float32,
        frozen_dtype=torch.float32,
        device="cpu",
        seed=9,
    )
    load_weights(again, directories={part: tmp_path})
    assert tensor_digests(again.part_state(part).items()) == tensor_digests(state.items())


def test_the_adaptor_has_no_layout_of_its_own(tiny, build, tmp_path):
    with pytest.raises(ConfigError, match="part 'adaptor' has no published layout"):
        export_part(tmp_path, config=tiny, part="adaptor", state=build(tiny).part_state("adaptor"))
