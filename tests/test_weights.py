"""Tensors into safetensors files and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save_file
from torch import nn

from mmlm.base.errors import CheckpointError
from mmlm.weights import _DTYPES, copy_tensors, read_tensors, safetensors_bytes, with_aliases, without_aliases, write_tensors


def test_every_dtype_and_shape_is_read_by_the_safetensors_package_as_it_was():
    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in _DTYPES}
    tensors |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "turned": torch.arange(6.0).reshape(2, 3).t(), "ä": torch.ones(1)}
    found = load(b"".join(bytes(piece) for piece in safetensors_bytes(tensors)))
    assert found.keys() == tensors.keys()
    assert all(found[name].equal(tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items())


def test_no_tensors_make_a_file_too():
    assert load(b"".join(bytes(piece) for piece in safetensors_bytes({}))) == {}


def test_a_large_tensor_is_written_in_pieces():
    pieces = list(safetensors_bytes({"big": torch.arange(10_000_000, dtype=torch.float32)}))
    assert max(map(len, pieces)) <= 1 << 24 and len(pieces) == 4
    assert load(b"".join(bytes(piece) for piece in pieces))["big"][-1] == 9_999_999


def test_tied_weights_are_stored_once_and_come_back_under_both_names():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    own = model.state_dict()
    stored = without_aliases(own)
    assert list(stored) == ["a.weight", "a.bias", "b.bias"]
    assert with_aliases(own, stored).keys() == own.keys()
    copy_tensors(own, with_aliases(own, {name: torch.ones_like(tensor) for name, tensor in stored.items()}), "x")
    assert bool((model["b"].weight == 1).all())


def test_tensors_that_lie_in_the_file_that_is_replaced_survive(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"big": torch.arange(1 << 20)})
    found = read_tensors(path)  # a memory map of the file
    write_tensors(path, {**found, "more": torch.ones(3)})
    assert torch.equal(read_tensors(path)["big"], torch.arange(1 << 20)) and torch.equal(found["big"], torch.arange(1 << 20))


def test_what_fails_while_it_is_written_leaves_the_file_before(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.ones(3)})
    with pytest.raises(KeyError):
        write_tensors(path, {"x": torch.zeros(3, dtype=torch.complex64)})
    assert torch.equal(read_tensors(path)["x"], torch.ones(3)) and [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


def test_up_to_ten_misfits_are_named_and_nothing_is_copied():
    own = {f"w{number:02}": torch.zeros(2) for number in range(12)}
    with pytest.raises(CheckpointError) as error:
        copy_tensors(own, {"w00": torch.ones(3), "w01": torch.ones(2), "other": torch.ones(1)}, "file")
    text = str(error.value)
    assert text.startswith("file: 12 tensors do not fit the model: missing w02; missing w03") and "and 2 more" in text
    assert all(bool((tensor == 0).all()) for tensor in own.values())
    with pytest.raises(CheckpointError, match=r"unknown b; w is \[3\], not \[2\]"):
        copy_tensors({"w": torch.zeros(2)}, {"w": torch.zeros(3), "b": torch.zeros(1)}, "file")


@pytest.mark.parametrize("content", [None, b"", b"\x10\0\0\0\0\0\0\0{}", b"not a weight file at all"])
def test_a_broken_file_is_told_by_name(tmp_path, content):
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="w.safetensors: (broken|no such file)"):
        read_tensors(path)


def test_a_flipped_bit_anywhere_is_found(tmp_path):
    path, rng = tmp_path / "w.safetensors", np.random.default_rng(0)
    tensors = {"a": torch.arange(40.0), "b": torch.ones(3, 5, dtype=torch.bfloat16), "c": torch.zeros(0)}
    write_tensors(path, tensors, {"kind": "small"})
    whole = path.read_bytes()
    starts = 8 + int.from_bytes(whole[:8], "little")
    undone = 0
    for place in [*range(8, starts), *rng.integers(starts, len(whole), 200)]:
        broken = bytearray(whole)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        try:
            found = read_tensors(path)
        except CheckpointError as error:
            assert str(path) in str(error)
        else:  # the name of the digest itself was hit: the tensors are what they were
            undone += 1
            assert found.keys() == tensors.keys() and all(found[name].equal(tensor) for name, tensor in tensors.items())
    assert undone <= len("__metadata__mmlm.sha256")


def test_files_of_other_programs_need_no_digest_and_read_ours(tmp_path):
    save_file({"x": torch.ones(3)}, str(tmp_path / "theirs.safetensors"), {"sha256": "of something else"})
    assert torch.equal(read_tensors(tmp_path / "theirs.safetensors")["x"], torch.ones(3))
    write_tensors(tmp_path / "ours.safetensors", {"x": torch.ones(3)}, {"kind": "small"})
    with safe_open(str(tmp_path / "ours.safetensors"), "pt") as opened:
        assert torch.equal(opened.get_tensor("x"), torch.ones(3))
        assert opened.metadata()["kind"] == "small" and opened.metadata()["format"] == "pt"
