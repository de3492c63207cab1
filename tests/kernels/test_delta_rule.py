"""Every form of the delta rule equals the step loop: outputs, last state, all gradients, packed and continued."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmlm.base.errors import RecipeError
from mmlm.kernels.delta_rule.fast import delta_rule
from mmlm.kernels.delta_rule.tolerance import TOLERANCE
from mmlm.kernels.dispatch import available
from mmlm.kernels.parity import covering, disagreements, forms, relative_error, with_gradients
from tests.kernels.recurrences import LAYOUTS, as_double, fixed

BACKENDS = available("delta_rule", but="reference")
CARRIED = ["fresh", "continued", "some continued"]
CASES = covering(3, forms("delta_rule", TOLERANCE), [1, 15, 16, 37], list(LAYOUTS), CARRIED, [False, True])


def inputs(length, dtype, groups=2, state=True, decay=True, heads=4, k=6, v=5, seed=0):
    g = torch.Generator().manual_seed(seed + length)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    tensors = {
        "query_btgk": normal(3, length, groups, k),
        "key_btgk": F.normalize(normal(3, length, groups, k), dim=-1),
        "value_bthv": normal(3, length, heads, v),
        "beta_bth": 2 * torch.rand(3, length, heads, generator=g, dtype=torch.float64),
        "decay_bth": -0.3 * normal(3, length, heads).exp() if decay else None,
    }
    if state:
        tensors["state_bhkv"] = normal(3, heads, k, v)
    kept = ("beta_bth", "decay_bth", "state_bhkv")  # float32 in every model
    types = {name: torch.float32 if name in kept and dtype == torch.bfloat16 else dtype for name in tensors}
    return {name: None if x is None else x.to(types[name]).requires_grad_() for name, x in tensors.items()}


def both(tensors, **options):
    """with_gradients, with the absent tensors bound."""
    absent = {name: None for name, x in tensors.items() if x is None}
    present = {name: x for name, x in tensors.items() if x is not None}
    return with_gradients(lambda **given: delta_rule(**given, **absent, **options), present)


@pytest.mark.parametrize(("form", "length", "layout", "carried", "decay"), CASES, ids=str)
def test_every_form_equals_the_step_loop(form, length, layout, carried, decay, nan_filled_memory):
    backend, dtype = form
    tensors = inputs(length, dtype, state=carried != "fresh", decay=decay)
    document = torch.tensor([LAYOUTS[layout](length), [1] * length, [0] * length])
    continues = torch.tensor([True, False, False]) if carried == "some continued" else None
    wanted = both(as_double(tensors), document_bt=document, continues=continues, backend="reference")
    got = both(tensors, document_bt=document, continues=continues, chunk_size=16, backend=backend)
    assert len(got) == 6 + decay + (carried != "fresh")
    assert disagreements(got, wanted, TOLERANCE[dtype]) == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("k", "v", "threads", "decay"), [(40, 70, 3, True), (64, 16, 3, False), (64, 16, 1, True)])
def test_long_rows_wide_states_and_several_threads(backend, threads, k, v, decay, monkeypatch):
    monkeypatch.setattr("mmlm.kernels.native.threads", lambda seconds: threads)
    tensors = inputs(300, torch.float32, heads=6, k=k, v=v, decay=decay)
    document = torch.tensor([[1] * 130 + [2] * 100 + [0] * 70, [1] * 300, [0] * 5 + [3] * 251 + [4] * 44])
    given = {"document_bt": document, "continues": torch.tensor([True, True, False])}
    exact = both(as_double(tensors), **given, backend="torch")
    assert disagreements(both(tensors, **given, backend=backend), exact, TOLERANCE[torch.float32]) == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("strength", [0.01, 100.0])
def test_weak_and_strong_decay_over_long_rows_keep_their_digits(backend, strength):
    tensors = inputs(300, torch.float32)
    tensors["decay_bth"] = (tensors["decay_bth"].detach() * strength).requires_grad_()
    document = torch.ones(3, 300, dtype=torch.int32)
    exact = both(as_double(tensors), document_bt=document, backend="reference")
    assert disagreements(both(tensors, document_bt=document, backend=backend), exact, 1e-4) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_key_with_beta_near_two_flips_the_state_without_losing_it(backend):
    g = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2, (1, 10_000, 1), generator=g)
    key = F.normalize(torch.ones(1, 10_000, 1, 7), dim=-1)
    given = {"query_btgk": key, "key_btgk": key, "value_bthv": torch.zeros(1, 10_000, 1, 3), "beta_bth": 2.0 * bits, "decay_bth": None}
    state = torch.ones(1, 1, 7, 3)
    document = torch.ones(1, 10_000, dtype=torch.int32)
    y = delta_rule(**given, document_bt=document, state_bhkv=state, backend=backend)[0]
    assert torch.equal(y[0, :, 0, 0] < 0, bits[0, :, 0].cumsum(0) % 2 == 1)
    assert relative_error(y.abs(), y[:, :1].abs().expand_as(y)) < 1e-3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"value_bthv": (3, 5, 5, 5)}, "5 value heads cannot share 2 key heads evenly"),
        ({"query_btgk": (3, 5, 2, 7)}, r"query must be \[3, 5, 2, 6\] beside key .*, but is \[3, 5, 2, 7\]"),
        ({"key_btgk": (3, 4, 2, 6)}, r"key must be \[3, 5, 2, 6\] beside key .*, but is \[3, 4, 2, 6\]"),
        ({"key_btgk": (3, 5, 6)}, "key and value have 4 axes"),
        ({"beta_bth": (3, 5, 2)}, r"beta must be \[3, 5, 4\] beside key .*, but is \[3, 5, 2\]"),
        ({"decay_bth": (3, 5)}, r"decay must be \[3, 5, 4\] beside key .*, but is \[3, 5\]"),
        ({"state_bhkv": (3, 4, 5, 6)}, r"state must be \[3, 4, 6, 5\] beside key .*, but is \[3, 4, 5, 6\]"),
        ({"document_bt": (3, 6)}, r"document must be \[3, 5\] beside key .*, but is \[3, 6\]"),
    ],
    ids=str,
)
def test_shapes_that_do_not_fit_are_refused(changed, message):
    tensors = {**fixed(inputs(5, torch.float32)), "document_bt": torch.ones(3, 5, dtype=torch.int32)}
    tensors |= {name: torch.ones(shape, dtype=tensors[name].dtype) for name, shape in changed.items()}
    for backend in ("reference", *BACKENDS):
        with pytest.raises(RecipeError, match=message):
            delta_rule(**tensors, backend=backend)
