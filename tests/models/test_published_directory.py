"""Published directories as people have them, and as they break."""

from __future__ import annotations

import json
import os
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from vltrain.errors import WeightsError
from vltrain.models import published_directory
from vltrain.models.build import build_model
from vltrain.models.published import llama_config
from vltrain.models.published_directory import PublishedDirectory
from vltrain.models.tensor_files import open_tensors
from vltrain.models.weights import load_weights

NORM = "model.norm.weight"


class RunsCode:
    """Unpickled, it would write a file."""

    def __reduce__(self):
        return os.mkdir, ("was_run",)


@pytest.fixture
def stock(tiny):
    return LlamaForCausalLM(llama_config(tiny.language))


@pytest.fixture
def sharded(stock, tmp_path):
    stock.save_pretrained(tmp_path, max_shard_size="100KB")
    return tmp_path


def _as_bin(directory, *, mapped=True):
    """The safetensors files of a directory as .bin, with the index if there is one."""
    for file in directory.glob("*.safetensors"):
        name = file.name.replace("model", "pytorch_model").replace("safetensors", "bin")
        torch.save(load_file(file), directory / name, _use_new_zipfile_serialization=mapped)
        file.unlink()
    for index in directory.glob("*.index.json"):
        text = index.read_text().replace("model-", "pytorch_model-").replace("safetensors", "bin")
        (directory / "pytorch_model.bin.index.json").write_text(text)
        index.unlink()


def _fresh(config):
    return build_model(
        config,
        trainable=["adaptor"],
        freeze=[],
        dtype=torch.float32,
        frozen_dtype=torch.float32,
        device="cpu",
        seed=0,
    )


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("shard_size", ["100KB", "1GB"])
def test_bin_files_give_the_same_as_safetensors(tiny, stock, tmp_path, shard_size, mapped):
    stock.save_pretrained(tmp_path, max_shard_size=shard_size)
    _as_bin(tmp_path, mapped=mapped)
    assert len(list(tmp_path.glob("*.bin"))) == (1 if shard_size == "1GB" else 6)
    built = _fresh(tiny)
    load_weights(built, directories={"language": tmp_path})
    theirs = stock.state_dict()
    for name, tensor in built.part_state("language").items():
        assert torch.equal(tensor, theirs[name.removeprefix("language.")]), name


def test_a_tensor_in_two_spellings_is_not_taken_twice(tiny, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    zeros, ones = torch.zeros(32), torch.ones(32)
    stored = {"post_layernorm.bias": zeros, "vision_model.post_layernorm.bias": ones}
    save_file(stored, tmp_path / "model.safetensors")
    published = PublishedDirectory(tmp_path, config=tiny)
    assert list(published.unknown.values()) == [(32,)]
    assert published.unknown.keys() < stored.keys()


def test_only_the_files_that_the_index_names_are_read(tiny, sharded):
    save_file({"stray.weight": torch.zeros(1)}, sharded / "consolidated.safetensors")
    assert PublishedDirectory(sharded, config=tiny).unknown == {}


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_missing_shard_is_named(tiny, sharded, form):
    stem = "model" if form == "safetensors" else "pytorch_model"
    if form == "bin":
        _as_bin(sharded)
    (sharded / f"{stem}-00002-of-00006.{form}").unlink()
    named = rf"lacks {stem}-00002-of-00006\.{form} \(\d+ tensors\), which {stem}\.{form}\.index"
    with pytest.raises(WeightsError, match=named):
        PublishedDirectory(sharded, config=tiny)
    (sharded / f"{stem}.{form}.index.json").unlink()
    with pytest.raises(WeightsError, match=rf"lacks {stem}-00002-of-00006.*there are 6 shards"):
        PublishedDirectory(sharded, config=tiny)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": ["a"]}'])
def test_an_index_that_is_none(tiny, sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(WeightsError, match=r"index\.json is damaged: no weight_map"):
        PublishedDirectory(sharded, config=tiny)


def test_an_index_does_not_lead_out_of_its_directory(tiny, sharded):
    index = {"weight_map": {NORM: "../elsewhere.safetensors"}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="expected names of files beside it"):
        PublishedDirectory(sharded, config=tiny)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_config(tiny, sharded, text):
    (sharded / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config\.json is damaged"):
        PublishedDirectory(sharded, config=tiny)


@pytest.mark.parametrize("form", ["safetensors", "bin", "old bin"])
def test_a_truncated_file_is_named(tiny, stock, tmp_path, form):
    stock.save_pretrained(tmp_path)
    if form != "safetensors":
        _as_bin(tmp_path, mapped=form == "bin")
    (file,) = [f for f in tmp_path.iterdir() if f.suffix in (".safetensors", ".bin")]
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=rf"{file.name} is damaged: .*Fetch it again"):
        PublishedDirectory(tmp_path, config=tiny)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"version https://git-lfs"])
def test_a_bin_that_is_no_pickle(tmp_path, content):
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin is damaged"):
        open_tensors(file)


@pytest.mark.parametrize("mapped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_does_not(tmp_path, monkeypatch, mapped):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "pytorch_model.bin"
    stored = {NORM: torch.zeros(3), "optimizer": RunsCode()}
    torch.save(stored, file, _use_new_zipfile_serialization=mapped)
    with pytest.raises(WeightsError, match=r"is refused: it is a pickle that names \w+\.mkdir"):
        open_tensors(file)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("stored", "said"),
    [({"step": 3, "state": {}}, "'step': int, 'state': dict among them"), ([1], "a list")],
)
def test_a_pickle_of_other_things_than_weights(tmp_path, stored, said):
    torch.save(stored, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=f"is no file of weights: .*{said}"):
        open_tensors(tmp_path / "pytorch_model.bin")


def test_buffers_that_follow_from_the_config_are_passed_over(tiny, stock, tmp_path):
    stock.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(16)}
    save_file(load_file(file) | buffer, file, metadata={"format": "pt"})
    load_weights(_fresh(tiny), directories={"language": tmp_path})


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_loading_holds_one_stored_tensor_at_a_time(tiny, sharded, monkeypatch, form):
    """Above the model itself; counted over the tensors that the files hand out."""
    if form == "bin":
        _as_bin(sharded)
    alive, peak, handed = [0], [0], [0]

    def counted(path):
        opened = open_tensors(path)
        read = opened.tensor

        def tensor(name):
            found = read(name).clone()  # a mapped one would live as long as its file
            size = found.nbytes
            alive[0] += size
            handed[0] += size
            peak[0] = max(peak[0], alive[0])

            def gone():
                alive[0] -= size

            weakref.finalize(found, gone)
            return found

        opened.tensor = tensor
        return opened

    built = _fresh(tiny)
    monkeypatch.setattr(published_directory, "open_tensors", counted)
    load_weights(built, directories={"language": sharded})
    sizes = [p.nbytes for p in built.part_state("language").values()]
    assert handed[0] == sum(sizes)
    assert peak[0] == max(sizes)
