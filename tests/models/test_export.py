"""Exports load in stock transformers and give the same logits."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from model_choices import overrides
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    DeepseekVLHybridForConditionalGeneration,
)

from vltrain.errors import ConfigError, WeightsError
from vltrain.models.build import build_model
from vltrain.models.export import ExportFormat, StateSource, export_model
from vltrain.models.layouts import is_unused, published_tensors
from vltrain.models.pixels import pixel_view
from vltrain.models.published import hybrid_config
from vltrain.models.published_directory import PublishedDirectory
from vltrain.models.trainable import parts_of
from vltrain.models.weights import load_weights, tensor_digests
from vltrain.processing.images import decode_square


def _export(built, directory, tokens, *, state=None):
    state = state if state is not None else dict(built.named_parameters())
    return export_model(
        directory,
        kind=ExportFormat.transformers,
        config=built.config,
        source=StateSource(state),
        tokens=tokens,
        dtype=torch.float32,
        shard_bytes=10**9,
    )


@pytest.fixture(params=["hybrid", "siglip_only"])
def exported(request, config_of, build, tmp_path, export_tokens):
    overrides = {} if request.param == "hybrid" else {"sam": None, "adaptor": {"kind": "mlp"}}
    if request.param == "siglip_only":
        overrides["pad_color"] = [127, 127, 127]
    built = build(config_of("tiny", overrides))
    _export(built, tmp_path, export_tokens)
    return built, tmp_path


def test_stock_model_gives_the_same_logits(exported, pack):
    built, directory = exported
    stock = AutoModelForImageTextToText.from_pretrained(directory).eval()
    batch = pack(built.config, [[(14, 2)], [(20, 1)]])
    views = {
        "pixel_values": pixel_view(
            built.config, part="siglip", images=batch.images, dtype=torch.float32
        )
    }
    if built.config.sam is not None:
        views["high_res_pixel_values"] = pixel_view(
            built.config, part="sam", images=batch.images, dtype=torch.float32
        )
    real = batch.segments > 0
    with torch.no_grad():
        expected = stock(input_ids=batch.ids, attention_mask=real.long(), **views).logits
        found = batch.logits(built)
    torch.testing.assert_close(found[real], expected[real], rtol=1e-5, atol=1e-5)
    assert stock.generation_config.eos_token_id == 1
    text = stock.config.text_config
    assert (text.bos_token_id, text.eos_token_id) == (0, 1)


def test_stock_processor_gives_the_same_ids_and_nearly_the_same_pixels(exported):
    built, directory = exported
    config = built.config
    processor = AutoProcessor.from_pretrained(directory)
    side = config.image_side
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    square = coarse.resize((side, side), Image.Resampling.BICUBIC)
    messages = [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "what is it? "}],
        }
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<bos>User: <image_placeholder>what is it?\n\nAssistant:"
    inputs = processor(text=text, images=[square])
    ids = inputs["input_ids"][0].tolist()
    assert ids[0] == 0
    assert ids.count(config.image_token_id) == config.tokens_per_image
    images = torch.from_numpy(np.asarray(square).copy())[None]
    low = pixel_view(config, part="siglip", images=images, dtype=torch.float32)
    levels = (inputs["pixel_values"] - low).abs().max() * 0.5 * 255
    assert levels <= 2.01
    if config.sam is not None:
        high = pixel_view(config, part="sam", images=images, dtype=torch.float32)
        torch.testing.assert_close(inputs["high_res_pixel_values"], high, rtol=0, atol=1e-5)


def _oblong(build, tiny, directory, export_tokens, size, rounding="official"):
    """Largest and mean difference, in normalised units, between the stock processor's views of an
    oblong picture and ours: ((high, high), (low, low))."""
    built = build(tiny)
    _export(built, directory, export_tokens)
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    picture, stored = coarse.resize(size, Image.Resampling.BICUBIC), io.BytesIO()
    picture.save(stored, format="PNG")
    square = decode_square(
        stored.getvalue(),
        side=tiny.image_side,
        pad_color=tiny.pad_color,
        rounding=rounding,
        mode="exact",
    )
    images = torch.from_numpy(square)[None]
    stock = AutoProcessor.from_pretrained(directory).image_processor(
        images=[picture], return_tensors="pt"
    )
    differences = []
    for key, part in (("high_res_pixel_values", "sam"), ("pixel_values", "siglip")):
        ours = pixel_view(built.config, part=part, images=images, dtype=torch.float32)
        difference = (stock[key] - ours).abs()
        differences.append((float(difference.max()), float(difference.mean())))
    return differences


@pytest.mark.parametrize("size", [(1000, 500), (500, 1000), (1000, 440), (440, 1000)])
def test_an_oblong_picture_in_the_stock_processor(build, tiny, tmp_path, export_tokens, size):
    """64 pixels wide: 32 and 28.16 high, where truncating and rounding agree."""
    high, low = _oblong(build, tiny, tmp_path, export_tokens, size)
    assert high[0] <= 1e-5
    assert low[0] * 0.5 * 255 <= 2.01  # levels of 255


@pytest.mark.parametrize("size", [(900, 500), (500, 900)])
def test_where_the_stock_processor_rounds_the_short_side_up(
    build, tiny, tmp_path, export_tokens, size
):
    """35.6 high: we cut to 35 as the original release does, stock transformers rounds to 36. An
    edge row is picture there and padding here, and the rest is scaled by a thirty-fifth: one
    row of 64 at this size, one of 1,024 at full size."""
    high, low = _oblong(build, tiny, tmp_path, export_tokens, size)
    assert 1.0 < high[0] < 2.5  # that row: picture against padding
    assert high[1] < 0.06
    assert low[1] < 0.04


@pytest.mark.parametrize("size", [(900, 500), (500, 900), (1000, 440), (999, 13)])
def test_rounding_as_transformers_gives_the_stock_processors_pixels(
    build, tiny, tmp_path, export_tokens, size
):
    high, low = _oblong(build, tiny, tmp_path, export_tokens, size, rounding="transformers")
    assert high[0] <= 1e-5
    assert low[0] * 0.5 * 255 <= 2.01


def test_the_padding_colour_of_the_export_is_the_models(exported):
    built, directory = exported
    processor = AutoProcessor.from_pretrained(directory).image_processor
    hybrid = built.config.sam is not None
    colour = processor.high_res_background_color if hybrid else processor.background_color
    assert list(colour) == built.config.pad_color


def test_a_whole_conversation_is_rendered_as_it_was_trained(exported):
    processor = AutoProcessor.from_pretrained(exported[1])
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " one "},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    assert processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == (
        "<bos>Be brief.\n\nUser: one\n\nAssistant: two<eos>User: three\n\nAssistant:"
    )


def test_the_system_prompt_that_was_trained_with_is_the_default(
    tiny, build, tmp_path, export_tokens
):
    said = 'Say "yes" – or\nno. 😀 {{ bos_token }} {% for \\n \'em %}'
    prompted = dataclasses.replace(export_tokens, system_prompt=f" {said} ")
    _export(build(tiny), tmp_path, prompted)
    processor = AutoProcessor.from_pretrained(tmp_path)
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    assert processor.apply_chat_template(turns, tokenize=False) == (
        f"<bos>{said}\n\nUser: one\n\nAssistant: two<eos>"
    )
    own = [{"role": "system", "content": "Be brief."}, *turns[:1]]
    assert processor.apply_chat_template(own, tokenize=False) == ("<bos>Be brief.\n\nUser: one\n\n")


def test_an_export_loads_back_bit_for_bit(exported):
    built, directory = exported
    again = build_model(
        built.config,
        trainable=["adaptor"],
        freeze=[],
        dtype=torch.float32,
        frozen_dtype=torch.float32,
        device="cpu",
        seed=9,
    )
    parts = [part for part in ("sam", "siglip", "adaptor", "language") if built.part_state(part)]
    load_weights(again, directories=dict.fromkeys(parts, directory))
    assert tensor_digests(again.named_parameters()) == tensor_digests(built.named_parameters())


@pytest.mark.parametrize("with_head", [False, True])
def test_transformers_to_ours_to_transformers_bit_for_bit(
    config_of, tmp_path, export_tokens, with_head
):
    """Names, shapes, types and bytes of what stock transformers saved, in shards; its pooling head
    too, where it has one."""
    config = config_of("tiny")
    record = hybrid_config(config)
    record.vision_config.vision_use_head = with_head
    stock = DeepseekVLHybridForConditionalGeneration(record).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.normal_(std=0.1)
    stock.save_pretrained(tmp_path / "in", max_shard_size="200KB")
    built = build_model(
        config,
        trainable=["adaptor"],
        freeze=[],
        dtype=torch.float32,
        frozen_dtype=torch.float32,
        device="cpu",
        seed=9,
    )
    load_weights(built, directories=dict.fromkeys(parts_of(config), tmp_path / "in"))
    unused = dict(PublishedDirectory(tmp_path / "in", config=config).tensors(is_unused))
    made = export_model(
        tmp_path / "out",
        kind=ExportFormat.transformers,
        config=config,
        source=StateSource(dict(built.named_parameters()) | unused),
        tokens=export_tokens,
        dtype=torch.bfloat16,
        shard_bytes=200_000,
    )
    assert made == ()
    stored, written = {}, {}
    for directory, tensors in (("in", stored), ("out", written)):
        files = list((tmp_path / directory).glob("model-*.safetensors"))
        assert len(files) > 1
        for file in files:
            tensors |= load_file(file)
    assert any(".head." in name for name in stored) is with_head
    assert written.keys() == stored.keys()
    for name, tensor in stored.items():
        assert written[name].dtype == tensor.dtype
        assert torch.equal(written[name], tensor), name
    again, report = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert again.config.vision_config.vision_use_head is with_head


def test_a_model_that_the_format_has_no_place_for(tiny, build, tmp_path, export_tokens):
    state = dict(build(tiny).named_parameters())
    with pytest.raises(WeightsError, match=r"unexpected adaptor\.gate \(1,\)"):
        _export(
            build(tiny), tmp_path, export_tokens, state={**state, "adaptor.gate": torch.zeros(1)}
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    with pytest.raises(WeightsError, match=r"no place for 1 tensors: adaptor\.gate\. Only the"):
        published_tensors({**shapes, "adaptor.gate": (1,)}, layout="deepseek_vl_hybrid")


def test_a_directory_without_a_tokenizer_is_named(tiny, build, tmp_path, export_tokens):
    nowhere = dataclasses.replace(export_tokens, directory=tmp_path)
    with pytest.raises(WeightsError, match=r"has no tokenizer\.json"):
        _export(build(tiny), tmp_path / "out", nowhere)
    assert not (tmp_path / "out").exists()


def test_an_incomplete_state_is_refused(tiny, build, tmp_path, export_tokens):
    built = build(tiny)
    with pytest.raises(
        WeightsError, match=r"(?s)cannot export .*missing sam\.pos_embed \(1, 8, 8, 32\)"
    ):
        _export(built, tmp_path, export_tokens, state=built.part_state("language"))


@pytest.mark.parametrize(("encoder", "kind"), [("siglip_sam", "shared"), ("clip", "mlp")])
def test_what_the_released_layouts_cannot_hold_is_refused(
    config_of, build, tmp_path, export_tokens, encoder, kind
):
    built = build(config_of("tiny", overrides(encoder, kind)), trainable=["adaptor"])
    with pytest.raises(ConfigError, match=f"joined by {kind}\\) cannot be exported: the released"):
        _export(built, tmp_path, export_tokens)
