"""Shards as save_pretrained would name them, written one tensor at a time."""

from __future__ import annotations

import json
import math
import weakref

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from vltrain.errors import WeightsError
from vltrain.models.shards import write_shards

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b.weight": torch.tensor([1.5]),
    "c": torch.arange(8.0).reshape(2, 2, 2).transpose(0, 2),
    "d": torch.tensor(7.0),
}


def _write(directory, *, dtype=torch.float32, shard_bytes=10**9):
    shapes = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    write_shards(
        directory, shapes=shapes, read=TENSORS.__getitem__, dtype=dtype, shard_bytes=shard_bytes
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_file(tmp_path, dtype):
    _write(tmp_path, dtype=dtype)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor.to(dtype))
    with safe_open(tmp_path / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_a_shard_ends_before_it_is_too_large(tmp_path):
    """In float32: a has 24 bytes, b 4, c 32, d 4."""
    _write(tmp_path, shard_bytes=28)
    files = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert files == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 64}
    assert index["weight_map"] == {
        "a": files[0],
        "b.weight": files[0],
        "c": files[1],
        "d": files[2],
    }
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], TENSORS[name])


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    alive, peak = [0], [0]

    def read(name):
        tensor = torch.ones(1000)
        alive[0] += 1
        peak[0] = max(peak[0], alive[0])
        weakref.finalize(tensor, lambda: alive.__setitem__(0, alive[0] - 1))
        return tensor

    shapes = {f"t{n}": (1000,) for n in range(9)}
    write_shards(tmp_path, shapes=shapes, read=read, dtype=torch.float32, shard_bytes=5 * 4000)
    assert peak[0] == 1
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_some_tensors_stay_in_float32_and_lie_at_multiples_of_their_size(tmp_path):
    """Three numbers of two bytes before one of four would leave it at an odd place."""
    tensors = {"a": torch.arange(3.0), "exact": torch.tensor([1 + 2**-20]), "z": torch.ones(1)}
    write_shards(
        tmp_path,
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        read=tensors.__getitem__,
        dtype=torch.bfloat16,
        shard_bytes=10**9,
        in_float32=["exact"],
    )
    found = load_file(tmp_path / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        "a": torch.bfloat16,
        "exact": torch.float32,
        "z": torch.bfloat16,
    }
    assert torch.equal(found["exact"], tensors["exact"])
    stored = (tmp_path / "model.safetensors").read_bytes()
    header = json.loads(stored[8 : 8 + int.from_bytes(stored[:8], "little")])
    assert header["exact"]["data_offsets"] == [0, 4]
    assert header["a"]["data_offsets"] == [4, 10]


def refusal(directory, tensors, *, dtype=torch.float32) -> str:
    """What is said, after which nothing is left."""
    with pytest.raises(WeightsError) as error:
        write_shards(
            directory,
            shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
            read=tensors.__getitem__,
            dtype=dtype,
            shard_bytes=24,
        )
    assert list(directory.iterdir()) == []
    return str(error.value)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    """In the first shard and in the last."""
    bad = torch.tensor([math.nan, 1.0, math.inf, -math.inf])
    said = refusal(tmp_path, {**TENSORS, "a": torch.tensor([[math.nan, 2.0]]), "bad": bad})
    assert said == (
        f"cannot export to {tmp_path}: 4 values in 2 tensors are not finite:\n"
        "  a: 1 of 2\n"
        "  bad: 3 of 4\n"
        "They are so where they were read: of what trained, export an earlier checkpoint "
        "(RUN/checkpoints/step-N); of what did not, fetch the published weights again\n"
        "No weights were left there"
    )


def test_values_that_the_written_type_cannot_hold_are_refused(tmp_path):
    """65,504 is float16's largest number."""
    tensors = {"fits": torch.tensor([65504.0]), "large": torch.tensor([70000.0, -1e5, 1.0])}
    said = refusal(tmp_path, tensors, dtype=torch.float16)
    assert "2 values in 1 tensors are not finite:\n  large: 2 of 3\n" in said
    assert "They are finite where they were read and too large for float16: give --dtype " in said
    assert "float32 or bfloat16\n" in said
    assert "earlier checkpoint" not in said
    beyond = refusal(tmp_path, {"w": torch.tensor([3.4e38])}, dtype=torch.bfloat16)
    assert "too large for bfloat16: give --dtype float32\n" in beyond


def test_both_at_once_and_more_than_a_message_shows(tmp_path):
    tensors = {f"t{n:02d}": torch.tensor([math.nan]) for n in range(11)}
    said = refusal(tmp_path, {**tensors, "u": torch.tensor([70000.0])}, dtype=torch.float16)
    assert "12 values in 12 tensors are not finite:\n  t00: 1 of 1\n" in said
    assert "  t09: 1 of 1\n  and 2 more tensors\n" in said
    assert "export an earlier checkpoint" in said
    assert "Some are finite where they were read and too large for float16" in said
