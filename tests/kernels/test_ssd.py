"""Every form of the Mamba-2 recurrence equals the step loop: outputs, last state, all gradients, packed and continued."""

from __future__ import annotations

import pytest
import torch

from mmlm.base.errors import RecipeError
from mmlm.kernels.dispatch import available
from mmlm.kernels.parity import covering, disagreements, forms, relative_error, with_gradients
from mmlm.kernels.ssd.fast import ssd
from mmlm.kernels.ssd.tolerance import TOLERANCE

BACKENDS = available("ssd", but="reference")
LAYOUTS = {
    "plain": lambda t: [1] * t,
    "packed": lambda t: [1 + 3 * i // t for i in range(t)],
    "padded": lambda t: [2] * (t - t // 3) + [0] * (t // 3),
    "padding between": lambda t: [(0, 1, 1, 1, 0, 2, 2)[i % 7] if i < 14 else 5 for i in range(t)],
}

CASES = covering(3, forms("ssd", TOLERANCE), [1, 15, 16, 37], list(LAYOUTS), ["fresh", "continued", "some continued"])


def inputs(length, dtype, groups=2, state=True, heads=4, p=6, n=5, seed=0):
    g = torch.Generator().manual_seed(seed + length)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    tensors = {
        "x_bthp": normal(3, length, heads, p),
        "step_bth": normal(3, length, heads).exp() * 0.3,
        "decay_h": -normal(heads).exp(),
        "key_btgn": normal(3, length, groups, n),
        "query_btgn": normal(3, length, groups, n),
    }
    if state:
        tensors["state_bhpn"] = normal(3, heads, p, n)
    kept = ("step_bth", "decay_h", "state_bhpn")  # float32 in every model
    return {k: v.to(torch.float32 if k in kept and dtype == torch.bfloat16 else dtype).requires_grad_() for k, v in tensors.items()}


@pytest.mark.parametrize(("form", "length", "layout", "carried"), CASES, ids=str)
def test_every_form_equals_the_step_loop(form, length, layout, carried, nan_filled_memory):
    backend, dtype = form
    tensors = inputs(length, dtype, state=carried != "fresh")
    document = torch.tensor([LAYOUTS[layout](length), [1] * length, [0] * length])
    continues = torch.tensor([True, False, False]) if carried == "some continued" else None
    exact = {k: v.detach().double().requires_grad_() for k, v in tensors.items()}
    wanted = with_gradients(ssd, exact, document_bt=document, continues=continues, backend="reference")
    got = with_gradients(ssd, tensors, document_bt=document, continues=continues, chunk_size=16, backend=backend)
    assert disagreements(got, wanted, TOLERANCE[dtype]) == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("p", "n"), [(40, 70), (64, 16)])
def test_long_rows_wide_states_and_several_threads(backend, threads, p, n, monkeypatch):
    monkeypatch.setattr("mmlm.kernels.native.threads", lambda seconds: threads)
    tensors = inputs(300, torch.float32, heads=6, p=p, n=n)
    document = torch.tensor([[1] * 130 + [2] * 100 + [0] * 70, [1] * 300, [0] * 5 + [3] * 251 + [4] * 44])
    given = {"document_bt": document, "continues": torch.tensor([True, True, False])}
    exact = with_gradients(ssd, {k: v.detach().double().requires_grad_() for k, v in tensors.items()}, **given, backend="torch")
    assert disagreements(with_gradients(ssd, tensors, **given, backend=backend), exact, TOLERANCE[torch.float32]) == []


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_any_split_gives_the_whole(backend):
    tensors = {k: v.detach() for k, v in inputs(40, torch.float32, state=False).items()}
    document = torch.tensor([[1] * 25 + [2] * 15, [1] * 40, [3] * 9 + [4] * 31], dtype=torch.int32)
    whole, last = ssd(**tensors, document_bt=document, chunk_size=16, backend=backend)
    state, parts, at = None, [], 0
    for size in (1, 7, 16, 1, 15):
        part = {k: v[:, at : at + size] if k != "decay_h" else v for k, v in tensors.items()}
        continues = None if at == 0 else document[:, at] == document[:, at - 1]
        y, state = ssd(
            **part, document_bt=document[:, at : at + size], state_bhpn=state, continues=continues, chunk_size=16, backend=backend
        )
        parts.append(y)
        at += size
    assert relative_error(torch.cat(parts, 1), whole) < 1e-5 and relative_error(state, last) < 1e-5


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_padding_gives_zero_and_leaves_the_state_as_it_is(backend):
    tensors = {k: v.detach() for k, v in inputs(9, torch.float32).items()}
    document = torch.tensor([[0] * 9, [1] * 9, [1] * 5 + [0] * 4])
    y, last = ssd(**tensors, document_bt=document, backend=backend)
    assert torch.equal(last[0], tensors["state_bhpn"][0]) and not y[0].any() and not y[2, 5:].any()
    spoiled = {k: v.clone() for k, v in tensors.items()}
    for name in ("x_bthp", "step_bth", "key_btgn", "query_btgn"):
        spoiled[name][2, 5:] = 9.0
    again, after = ssd(**spoiled, document_bt=document, backend=backend)
    assert torch.equal(again, y) and torch.equal(after, last)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strong_decay_and_long_rows_keep_their_digits(backend):
    tensors = {k: v.detach() for k, v in inputs(300, torch.float32, state=False).items()}
    tensors["step_bth"] = tensors["step_bth"] * 20
    document = torch.ones(3, 300, dtype=torch.int32)
    exact = ssd(**{k: v.double() for k, v in tensors.items()}, document_bt=document, backend="reference")
    for got, wanted in zip(ssd(**tensors, document_bt=document, backend=backend), exact):
        assert relative_error(got, wanted) < 1e-4


def test_autocast_changes_nothing_and_the_dtype_of_x_is_kept():
    tensors = {k: v.detach() for k, v in inputs(20, torch.float32).items()}
    document = torch.ones(3, 20, dtype=torch.int32)
    for backend in ("reference", *BACKENDS):
        y, last = ssd(**tensors, document_bt=document, backend=backend)
        with torch.autocast("cpu", torch.bfloat16):
            y_cast, last_cast = ssd(**tensors, document_bt=document, backend=backend)
        assert y_cast.dtype == torch.float32 and torch.equal(y, y_cast) and torch.equal(last, last_cast)


def test_heads_that_cannot_share_groups_are_refused():
    tensors = inputs(5, torch.float32, groups=3)
    with pytest.raises(RecipeError, match="4 heads cannot share 3 groups"):
        ssd(**tensors, document_bt=torch.ones(3, 5, dtype=torch.int32))
