"""Every form of gated linear attention equals the step loop: outputs, last state, all gradients, packed and continued."""

from __future__ import annotations

import functools

import pytest
import torch

from mmlm.base.errors import RecipeError
from mmlm.kernels.dispatch import available
from mmlm.kernels.gla.fast import gla
from mmlm.kernels.gla.tolerance import TOLERANCE
from mmlm.kernels.parity import covering, disagreements, forms, with_gradients
from tests.kernels.recurrences import as_double, fixed, layouts

BACKENDS = available("gla", but="reference")
CASES = covering(2, forms("gla", TOLERANCE), [1, 16, 37], ["fresh", "continued", "some continued"])


def inputs(length, dtype, state=True, heads=2, k=6, v=5, rows=3):
    g = torch.Generator().manual_seed(length)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    tensors = {
        "query_bthk": normal(rows, length, heads, k),
        "key_bthk": normal(rows, length, heads, k),
        "value_bthv": normal(rows, length, heads, v),
        "decay_bthk": -0.3 * normal(rows, length, heads, k).exp(),
    }
    if state:
        tensors["state_bhkv"] = normal(rows, heads, k, v)
    kept = ("decay_bthk", "state_bhkv")  # float32 in every model
    types = {name: torch.float32 if name in kept and dtype == torch.bfloat16 else dtype for name in tensors}
    return {name: x.to(types[name]).requires_grad_() for name, x in tensors.items()}


def both(tensors, **options):
    return with_gradients(functools.partial(gla, **options), tensors)


@pytest.mark.parametrize(("form", "length", "carried"), CASES, ids=str)
def test_every_form_equals_the_step_loop(form, length, carried, nan_filled_memory):
    backend, dtype = form
    tensors, document = inputs(length, dtype, state=carried != "fresh", rows=5), layouts(length)
    continues = torch.tensor([True, False, False, True, False]) if carried == "some continued" else None
    wanted = both(as_double(tensors), document_bt=document, continues=continues, backend="reference")
    got = both(tensors, document_bt=document, continues=continues, backend=backend)
    assert len(got) == 6 + (carried != "fresh")
    assert disagreements(got, wanted, TOLERANCE[dtype]) == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("k", "v", "threads"), [(40, 70, 3), (70, 16, 1)])
def test_long_rows_wide_states_and_several_threads(backend, threads, k, v, monkeypatch):
    monkeypatch.setattr("mmlm.kernels.native.threads", lambda seconds: threads)
    tensors = inputs(300, torch.float32, heads=2, k=k, v=v)
    document = torch.tensor([[1] * 130 + [2] * 100 + [0] * 70, [1] * 300, [0] * 5 + [3] * 251 + [4] * 44])
    given = {"document_bt": document, "continues": torch.tensor([True, True, False])}
    exact = both(as_double(tensors), **given, backend="torch")
    assert disagreements(both(tensors, **given, backend=backend), exact, TOLERANCE[torch.float32]) == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("strength", [0.01, 100.0])
def test_weak_and_strong_decay_over_long_rows_keep_their_digits(backend, strength):
    tensors = inputs(300, torch.float32)
    tensors["decay_bthk"] = (tensors["decay_bthk"].detach() * strength).requires_grad_()
    document = torch.ones(3, 300, dtype=torch.int32)
    exact = both(as_double(tensors), document_bt=document, backend="reference")
    assert disagreements(both(tensors, document_bt=document, backend=backend), exact, 1e-4) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"key_bthk": (3, 5, 6)}, "key and value have 4 axes"),
        ({"query_bthk": (3, 5, 2, 7)}, r"query must be \[3, 5, 2, 6\] beside key .*, but is \[3, 5, 2, 7\]"),
        ({"value_bthv": (3, 5, 1, 5)}, r"value must be \[3, 5, 2, 5\] beside key .*, but is \[3, 5, 1, 5\]"),
        ({"decay_bthk": (3, 5, 2)}, r"decay must be \[3, 5, 2, 6\] beside key .*, but is \[3, 5, 2\]"),
        ({"state_bhkv": (3, 2, 5, 6)}, r"state must be \[3, 2, 6, 5\] beside key .*, but is \[3, 2, 5, 6\]"),
        ({"document_bt": (3, 6)}, r"document must be \[3, 5\] beside key .*, but is \[3, 6\]"),
    ],
    ids=str,
)
def test_shapes_that_do_not_fit_are_refused(changed, message):
    tensors = {**fixed(inputs(5, torch.float32)), "document_bt": torch.ones(3, 5, dtype=torch.int32)}
    tensors |= {name: torch.ones(shape, dtype=tensors[name].dtype) for name, shape in changed.items()}
    for backend in ("reference", *BACKENDS):
        with pytest.raises(RecipeError, match=message):
            gla(**tensors, backend=backend)
