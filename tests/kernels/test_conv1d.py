"""Every form of the causal convolution equals the step loop: outputs, kept inputs, gradients, packed and continued."""

from __future__ import annotations

import pytest
import torch

from mmlm.base.errors import RecipeError
from mmlm.kernels.conv1d.fast import causal_conv1d
from mmlm.kernels.conv1d.tolerance import TOLERANCE
from mmlm.kernels.dispatch import available
from mmlm.kernels.parity import covering, disagreements, forms, relative_error, with_gradients

BACKENDS = available("causal_conv1d", but="reference")
LAYOUTS = {
    "plain": lambda t: [1] * t,
    "packed": lambda t: [1 + 4 * i // t for i in range(t)],
    "one token each": lambda t: [1 + i for i in range(t)],
    "padded": lambda t: [2] * (t - t // 3) + [0] * (t // 3),
    "padding between": lambda t: [(0, 1, 1, 1, 0, 2, 2)[i % 7] if i < 14 else 5 for i in range(t)],
}

SIZES = [(1, 4), (2, 4), (5, 2), (21, 4), (19, 7), (6, 1), (40, 17), (11, 31)]  # length and taps
CASES = covering(3, forms("causal_conv1d", TOLERANCE), SIZES, list(LAYOUTS), ["fresh", "continued", "some continued"])


def inputs(length, dtype, taps, bias=True, state=True, channels=37):
    g = torch.Generator().manual_seed(length)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()

    tensors = {"x_btc": normal(3, length, channels), "weight_ck": normal(channels, taps)}
    if bias:
        tensors["bias_c"] = normal(channels)
    if state:
        tensors["state_bck"] = normal(3, channels, taps - 1)
    return tensors


def run(**given):
    return causal_conv1d(**{"bias_c": None, **given})


@pytest.mark.parametrize(("form", "size", "layout", "carried"), CASES, ids=str)
def test_every_form_equals_the_step_loop(form, size, layout, carried, nan_filled_memory):
    (backend, dtype), (length, taps) = form, size
    tensors = inputs(length, dtype, taps, bias=length != 5, state=carried != "fresh")
    document = torch.tensor([LAYOUTS[layout](length), [1] * length, [0] * length])
    given = {
        "document_bt": document,
        "continues": torch.tensor([True, False, False]) if carried == "some continued" else None,
        "activation": None if length == 19 else "silu",
    }
    exact = {k: v.detach().double().requires_grad_() for k, v in tensors.items()}
    wanted = with_gradients(run, exact, **given, backend="reference")
    got = with_gradients(run, tensors, **given, backend=backend)
    assert disagreements(got, wanted, TOLERANCE[dtype]) == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_slice_of_a_wider_tensor_is_read_as_it_lies_by_several_threads(backend, threads, monkeypatch):
    monkeypatch.setattr("mmlm.kernels.native.threads", lambda seconds: threads)
    tensors = inputs(23, torch.float32, 4, channels=600)
    wide = torch.cat([torch.full((3, 23, 9), 7.0), tensors["x_btc"].detach(), torch.full((3, 23, 5), 7.0)], dim=2)
    given = {"document_bt": torch.tensor([[1] * 10 + [2] * 13] * 3), "backend": backend}
    exact = with_gradients(run, tensors, **{**given, "backend": "reference"})
    assert disagreements(with_gradients(run, {**tensors, "x_btc": wide[..., 9:-5].requires_grad_()}, **given), exact, 1e-5) == []


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_any_split_gives_the_whole(backend):
    tensors = {k: v.detach() for k, v in inputs(30, torch.float32, 4, state=False).items()}
    document = torch.tensor([[1] * 11 + [2] * 19, [1] * 30, [3] * 2 + [4] * 28], dtype=torch.int32)
    whole, last = causal_conv1d(**tensors, document_bt=document, backend=backend)
    state, parts, at = None, [], 0
    for size in (1, 2, 3, 5, 0, 1, 18):
        continues = None if at == 0 or not size else document[:, at] == document[:, at - 1]
        part = {**tensors, "x_btc": tensors["x_btc"][:, at : at + size]}
        y, state = causal_conv1d(**part, document_bt=document[:, at : at + size], state_bck=state, continues=continues, backend=backend)
        parts.append(y)
        at += size
    assert relative_error(torch.cat(parts, 1), whole) < 1e-6 and torch.equal(state, last)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_a_neighbour_document_and_padding_leave_no_trace(backend):
    tensors = {k: v.detach() for k, v in inputs(12, torch.float32, 4).items()}
    document = torch.tensor([[1] * 5 + [2] * 5 + [0] * 2] * 3)
    spoiled = {**tensors, "x_btc": tensors["x_btc"].clone()}
    spoiled["x_btc"][:, :5] += 100
    spoiled["x_btc"][:, 10:] += 100
    (y, last), (again, after) = (causal_conv1d(**given, document_bt=document, backend=backend) for given in (tensors, spoiled))
    assert torch.equal(y[:, 5:], again[:, 5:]) and torch.equal(last, after) and not torch.equal(y[:, :5], again[:, :5])
    assert torch.equal(last, tensors["x_btc"][:, 7:10].transpose(1, 2)) and not y[:, 10:].any()


def test_another_activation_is_refused():
    with pytest.raises(RecipeError, match="'silu' or None, but is 'relu'"):
        causal_conv1d(**inputs(3, torch.float32, 4), document_bt=torch.ones(3, 3, dtype=torch.int32), activation="relu")
