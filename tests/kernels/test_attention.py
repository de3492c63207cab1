"""Every form of attention equals full float32 scores: values and gradients, grouped heads, windows, masks, caps, queries after a past."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmlm.base.errors import RecipeError
from mmlm.kernels.attention import blocks, fast
from mmlm.kernels.attention.fast import attention
from mmlm.kernels.attention.tolerance import TOLERANCE
from mmlm.kernels.dispatch import available
from mmlm.kernels.parity import disagreements, relative_error, with_gradients

BACKENDS = available("attention", but="reference")

RULES = [{"causal": True}, {"causal": False}, {"causal": True, "window": 9}, {"causal": False, "window": 20}]


@pytest.fixture(params=["one block", "blocks"], autouse=True)
def way(request, monkeypatch):
    monkeypatch.setattr(fast, "FEW_SCORES", 1)
    if request.param == "blocks":
        monkeypatch.setattr(blocks, "BLOCK", 16)
        monkeypatch.setattr(blocks, "SCORES", 2000)
    return request.param


def inputs(dtype, t=37, length=37, heads=6, groups=2, channels=20):
    g = torch.Generator().manual_seed(t + length)
    shapes = {"q_bhtk": (3, t, heads, channels), "k_bglk": (3, length, groups, channels), "v_bglk": (3, length, groups, channels + 4)}
    made = {k: torch.randn(*shape, generator=g, dtype=torch.float64).transpose(1, 2) for k, shape in shapes.items()}
    return {k: x.to(dtype).requires_grad_() for k, x in made.items()}


def some_mask(kind, t, length):
    g = torch.Generator().manual_seed(0)
    shape = {"rows": (3, 1, t, length), "heads": (1, 6, t, length), "one": (t, length), "none": None}[kind]
    if shape is None:
        return None
    mask = torch.rand(shape, generator=g) < 0.6
    mask[..., 5, :] = False
    return mask


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("mask", ["none", "rows", "heads", "one"])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_every_form_equals_full_scores(backend, dtype, rule, mask, softcap, nan_filled_memory):
    if backend == "native" and dtype == torch.float64:
        dtype = torch.float32
    tensors = inputs(dtype)
    given = {**rule, "softcap": softcap, "mask": some_mask(mask, 37, 37), "scale": 0.3}
    exact = {k: v.detach().double().requires_grad_() for k, v in tensors.items()}
    wanted = with_gradients(attention, exact, **given, backend="reference")
    got = with_gradients(attention, tensors, **given, backend=backend)
    assert got["output 0"].dtype == dtype
    assert disagreements(got, wanted, TOLERANCE[dtype]) == []


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize("window", [None, 6])
def test_queries_after_a_past_are_the_last_rows_of_the_whole(backend, window):
    tensors = {k: v.detach() for k, v in inputs(torch.float32).items()}
    whole = attention(**tensors, causal=True, window=window, backend="reference")
    for t in (1, 5, 30):
        part = attention(tensors["q_bhtk"][:, :, -t:], tensors["k_bglk"], tensors["v_bglk"], causal=True, window=window, backend=backend)
        assert relative_error(part, whole[:, :, -t:]) < 1e-5


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_plain_attention_is_that_of_torch_and_the_future_leaves_no_trace(backend):
    tensors = {k: v.detach() for k, v in inputs(torch.float32).items()}
    got = attention(**tensors, causal=True, backend=backend)
    assert relative_error(got, F.scaled_dot_product_attention(*tensors.values(), is_causal=True, enable_gqa=True)) < 1e-6
    spoiled = {k: v.clone() for k, v in tensors.items()}
    spoiled["k_bglk"][:, :, 20:], spoiled["v_bglk"][:, :, 20:] = 50.0, -50.0
    assert torch.equal(attention(**spoiled, causal=True, backend=backend)[:, :, :20], got[:, :, :20])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 2])
def test_as_many_key_heads_and_one_row_of_the_batch(backend, dtype, rows):
    tensors = {k: v.detach()[:rows].requires_grad_() for k, v in inputs(dtype, groups=6).items()}
    tensors["v_bglk"] = tensors["v_bglk"].detach()[..., :20].requires_grad_()
    exact = {k: v.detach().double().requires_grad_() for k, v in tensors.items()}
    wanted = with_gradients(attention, exact, causal=True, backend="reference")
    assert disagreements(with_gradients(attention, tensors, causal=True, backend=backend), wanted, TOLERANCE[dtype]) == []


@pytest.mark.parametrize("groups", [2, 6])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_few_scores_of_bfloat16_are_computed_in_float32(groups, rule, monkeypatch):
    monkeypatch.setattr(fast, "FEW_SCORES", 1 << 17)
    seen = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, *rest, **more: seen.append(q.dtype) or fused(q, *rest, **more))
    tensors = inputs(torch.bfloat16, groups=groups)
    exact = {k: v.detach().double().requires_grad_() for k, v in tensors.items()}
    wanted = with_gradients(attention, exact, **rule, backend="reference")
    found = with_gradients(attention, tensors, **rule, backend="torch")
    assert disagreements(found, wanted, TOLERANCE[torch.bfloat16]) == []
    assert seen == [torch.float32] and {x.dtype for x in found.values()} == {torch.bfloat16}
    with torch.no_grad():
        attention(**tensors, **rule, backend="torch")
    assert seen[1:] == [torch.bfloat16]


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_that_see_nothing_give_zeros_and_finite_gradients(backend):
    tensors = inputs(torch.float32)
    found = with_gradients(attention, tensors, causal=False, mask=torch.zeros(37, 37, dtype=torch.bool), backend=backend)
    assert all(not x.any() for x in found.values())


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(RecipeError, match="6 query heads cannot share 4 key heads"):
        attention(**inputs(torch.float32, groups=4), causal=True)
    with pytest.raises(RecipeError, match="37 causal queries need as many keys at least, but there are 30"):
        attention(**inputs(torch.float32, length=30), causal=True)
