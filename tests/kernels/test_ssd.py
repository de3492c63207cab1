"""Every form of the Mamba-2 recurrence equals the step loop: outputs, last state, all gradients, packed and continued."""

from __future__ import annotations

import pytest
import torch

from mmlm.base.errors import RecipeError
from mmlm.kernels.dispatch import available
from mmlm.kernels.parity import covering, disagreements, forms, relative_error, with_gradients
from mmlm.kernels.ssd.fast import ssd
from mmlm.kernels.ssd.tolerance import TOLERANCE
from tests.kernels.recurrences import LAYOUTS, as_double, fixed

BACKENDS = available("ssd", but="reference")
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
    exact = as_double(tensors)
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
    exact = with_gradients(ssd, as_double(tensors), **given, backend="torch")
    assert disagreements(with_gradients(ssd, tensors, **given, backend=backend), exact, TOLERANCE[torch.float32]) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_strong_decay_and_long_rows_keep_their_digits(backend):
    tensors = fixed(inputs(300, torch.float32, state=False))
    tensors["step_bth"] = tensors["step_bth"] * 20
    document = torch.ones(3, 300, dtype=torch.int32)
    exact = ssd(**{k: v.double() for k, v in tensors.items()}, document_bt=document, backend="reference")
    for got, wanted in zip(ssd(**tensors, document_bt=document, backend=backend), exact):
        assert relative_error(got, wanted) < 1e-4


def test_heads_that_cannot_share_groups_are_refused():
    tensors = inputs(5, torch.float32, groups=3)
    with pytest.raises(RecipeError, match="4 heads cannot share 3 groups"):
        ssd(**tensors, document_bt=torch.ones(3, 5, dtype=torch.int32))
