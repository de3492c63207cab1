"""Norms, SwiGLU and rotary positions: every form equals the reference in value and gradients, for every dtype and odd shapes."""

from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F

from mmlm.base.errors import RecipeError
from mmlm.kernels.dispatch import available
from mmlm.kernels.lrpe.fast import lrpe
from mmlm.kernels.parity import disagreements, relative_error, with_gradients
from mmlm.kernels.rms_norm.fast import add_rms_norm, rms_norm
from mmlm.kernels.rope.fast import rope
from mmlm.kernels.swiglu.fast import swiglu


def lrpe_as_given(q_bthk, k_bthk, angle_bthk, backend):
    return lrpe(q_bthk, k_bthk, angle_bthk, q_bthk.dtype, backend=backend)


OPS = {"rms_norm": rms_norm, "add_rms_norm": add_rms_norm, "swiglu": swiglu, "rope": rope, "lrpe": lrpe_as_given}
CASES = [
    (name, backend, dtype)
    for name in OPS
    for backend in available(name.removeprefix("add_"), but="reference")
    for dtype in (torch.float64, torch.float32, torch.bfloat16)
    if (backend, dtype) != ("native", torch.float64)
]


def tolerance(name, dtype):
    return importlib.import_module(f"mmlm.kernels.{name.removeprefix('add_')}.tolerance").TOLERANCE[dtype]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def inputs(name, dtype, width):
    if name == "rope":
        tensors = {"q_bthk": normal(2, 5, 3, width + width % 2), "k_btgk": normal(2, 5, 1, width + width % 2, seed=1)}
        tensors = {k: v.to(dtype).requires_grad_() for k, v in tensors.items()}
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        angle = normal(2, 5, (width + width % 2) // 2, seed=3)
        return tensors | {"cos_btj": angle.cos().to(exact), "sin_btj": angle.sin().to(exact)}
    if name == "lrpe":  # of one row for all where the width is odd
        tensors = {"q_bthk": normal(2, 5, 3, width), "k_bthk": normal(2, 5, 3, width, seed=1)}
        angle = normal(1 + (width + 1) % 2, 5, 3, width, seed=3).to(torch.promote_types(dtype, torch.float32))
        return {k: v.to(dtype).requires_grad_() for k, v in tensors.items()} | {"angle_bthk": angle.requires_grad_()}
    if name == "swiglu":
        tensors = {"gate_up": normal(3, 7, 2 * width) * 3}
    else:
        tensors = {"x": normal(3, 7, width) + 1, "weight_d": normal(width, seed=1)}
    if name == "add_rms_norm":
        tensors["residual"] = normal(3, 7, width, seed=2)
    return {k: v.to(dtype).requires_grad_() for k, v in tensors.items()}


@pytest.mark.parametrize(("name", "backend", "dtype"), CASES, ids=lambda x: str(x))
@pytest.mark.parametrize("width", [3, 16, 45, 64])
def test_values_and_gradients_are_those_of_the_reference(name, backend, dtype, width, nan_filled_memory):
    tensors = inputs(name, dtype, width)
    exact = {k: v.detach().double().requires_grad_(v.requires_grad) for k, v in tensors.items()}
    wanted = with_gradients(OPS[name], exact, backend="reference")
    got = with_gradients(OPS[name], tensors, backend=backend)
    assert disagreements(got, wanted, tolerance(name, dtype)) == []
    assert all(y.dtype == dtype for k, y in got.items() if k.startswith("output"))


@pytest.mark.parametrize("backend", available("rms_norm"))
def test_rms_norm_of_a_float32_stream_takes_bfloat16_branches_and_gives_bfloat16_to_the_next_layer(backend):
    tensors = inputs("add_rms_norm", torch.float32, 48)
    tensors["x"] = tensors["x"].detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        got = with_gradients(add_rms_norm, tensors, backend=backend)
        other_way = with_gradients(
            add_rms_norm, {**tensors, "x": tensors["residual"], "residual": tensors["x"]}, dtype=torch.bfloat16, backend=backend
        )
    exact = {k: v.detach().double().requires_grad_() for k, v in tensors.items()}
    wanted = with_gradients(add_rms_norm, exact, backend="reference")
    assert got["output 0"].dtype == other_way["output 0"].dtype == got["d x"].dtype == torch.bfloat16
    assert got["output 1"].dtype == other_way["output 1"].dtype == got["d residual"].dtype == torch.float32
    assert relative_error(got["output 1"], wanted["output 1"]) < 1e-6
    assert disagreements(got, wanted, 1e-2) == []
    assert relative_error(other_way["d residual"], wanted["d x"]) < 1e-2


@pytest.mark.parametrize("backend", available("rope"))
def test_rope_reads_any_strides_keeps_further_channels_and_shares_angles(backend):
    qkv = normal(2, 6, 5 * 24).float().requires_grad_()
    q, k = qkv.unflatten(-1, (5, 24))[..., :3, :], qkv.unflatten(-1, (5, 24))[..., 3:, :]
    angle = normal(1, 6, 10).float()
    turned_q, turned_k = rope(q, k, angle.cos(), angle.sin(), backend=backend)
    alone = rope(q[1].contiguous(), k[1].contiguous(), angle[0].cos(), angle[0].sin(), backend=backend)
    assert torch.equal(turned_q[1], alone[0]) and torch.equal(turned_k[1], alone[1])
    assert torch.equal(turned_q[..., 20:], q[..., 20:])
    assert relative_error(turned_q.norm(dim=-1), q.norm(dim=-1)) < 1e-6
    upstream = normal(2, 3, 6, 24, seed=5).float().transpose(1, 2)
    (back,) = torch.autograd.grad(turned_q, qkv, upstream)
    again = rope(back.unflatten(-1, (5, 24))[..., :3, :], k, angle.cos(), angle.sin(), backend=backend)[0]
    assert relative_error(again, upstream) < 1e-6


@pytest.mark.parametrize("backend", available("rms_norm"))
def test_rms_norm_of_large_small_zero_and_missing_rows(backend):
    x = torch.stack([torch.full((40,), 1e15), torch.full((40,), 1e-12), torch.zeros(40), torch.full((40,), float("nan"))])
    y = rms_norm(x, torch.ones(40), 1e-6, backend=backend)
    assert torch.allclose(y[0], torch.ones(40)) and y[1].abs().max() < 1e-6 and not y[2].any() and y[3].isnan().all()
    assert rms_norm(torch.zeros(0, 40), torch.ones(40), backend=backend).shape == (0, 40)


@pytest.mark.parametrize("backend", available("swiglu"))
def test_swiglu_of_extreme_gates(backend):
    gate = torch.tensor([-1e30, -100.0, -88.5, 0.0, 88.5, 1e30, float("inf"), float("nan")])
    y = swiglu(torch.cat([gate, torch.ones(8)]), backend=backend)
    wanted = F.silu(gate)
    assert torch.allclose(y, wanted, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("backend", available("lrpe"))
def test_lrpe_of_keys_in_float32_beside_queries_in_bfloat16_of_which_one_has_a_gradient(backend):
    tensors = inputs("lrpe", torch.float32, 20)
    queries = tensors["q_bthk"].detach().bfloat16()
    exact = {k: v.detach().double().requires_grad_() for k, v in tensors.items()} | {"q_bthk": queries.double()}
    wanted = with_gradients(lambda **given: lrpe_as_given(**given, backend="reference")[1], exact)

    def keys(**given):
        return lrpe(**given, dtype=torch.bfloat16, backend=backend)[1]

    assert disagreements(with_gradients(keys, tensors | {"q_bthk": queries}), wanted, 1e-2) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_lrpe_in_a_type_that_compiled_code_cannot_write_is_not_left_to_it(dtype):
    tensors = inputs("lrpe", torch.float32, 20)
    for got, wanted in zip(lrpe(**tensors, dtype=dtype), lrpe(**tensors, dtype=dtype, backend="reference"), strict=True):
        assert got.dtype == dtype and relative_error(got, wanted) < 1e-2


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(RecipeError, match=r"queries \[1, 2, 3, 4\], keys \[1, 2, 3, 4\] and angles \[2, 2, 3, 4\] do not fit"):
        lrpe(*torch.zeros(2, 1, 2, 3, 4), torch.zeros(2, 2, 3, 4), torch.float32)
    with pytest.raises(RecipeError, match="size 7 is odd"):
        swiglu(torch.zeros(2, 7))
    with pytest.raises(RecipeError, match="9 pairs do not fit into heads of 16"):
        rope(torch.zeros(1, 2, 3, 16), torch.zeros(1, 2, 1, 16), torch.zeros(1, 2, 9), torch.zeros(1, 2, 9))
