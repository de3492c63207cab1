"""Every form of the running softmax equals the step loop: outputs, last state, all gradients, packed and continued."""

from __future__ import annotations

import functools

import pytest
import torch

from mmlm.base.errors import RecipeError
from mmlm.kernels.dispatch import available
from mmlm.kernels.parity import covering, disagreements, forms, relative_error, with_gradients
from mmlm.kernels.running_softmax.fast import running_softmax
from mmlm.kernels.running_softmax.tolerance import TOLERANCE
from tests.kernels.recurrences import as_double, layouts

BACKENDS = available("running_softmax", but="reference")
CASES = covering(2, forms("running_softmax", TOLERANCE), [1, 16, 37], ["fresh", "continued", "some continued"])


def inputs(length, dtype, state=True, rows=5, channels=70, scale=3.0):
    g = torch.Generator().manual_seed(length)
    tensors = {"logits_bti": (scale * torch.randn(rows, length, channels, generator=g, dtype=torch.float64)).to(dtype)}
    if state:
        held = torch.float32 if dtype == torch.bfloat16 else dtype
        tensors["state_bi"] = torch.randn(rows, channels, generator=g, dtype=torch.float64).to(held)
    return {name: x.requires_grad_() for name, x in tensors.items()}


def both(tensors, **options):
    return with_gradients(functools.partial(running_softmax, **options), tensors)


@pytest.mark.parametrize(("form", "length", "carried"), CASES, ids=str)
def test_every_form_equals_the_step_loop(form, length, carried, nan_filled_memory):
    backend, dtype = form
    tensors, document = inputs(length, dtype, state=carried != "fresh"), layouts(length)
    continues = torch.tensor([True, False, False, True, False]) if carried == "some continued" else None
    wanted = both(as_double(tensors), document_bt=document, continues=continues, backend="reference")
    got = both(tensors, document_bt=document, continues=continues, backend=backend)
    assert len(got) == 4 + (carried != "fresh")
    assert disagreements(got, wanted, TOLERANCE[dtype]) == []


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_it_is_the_softmax_over_the_tokens_so_far_also_of_huge_logits(backend):
    logits = inputs(50, torch.float32, state=False, rows=1, channels=3, scale=30.0)["logits_bti"].detach()
    weight, decay, last = running_softmax(logits, torch.ones(1, 50, dtype=torch.int32), backend=backend)
    assert weight.isfinite().all() and decay.isfinite().all()
    share, exact = torch.zeros(3, dtype=torch.float64), logits[0].double()
    for i in range(50):
        share = share * decay[0, i].double().exp()
        assert relative_error(share + weight[0, i].double(), torch.ones(3)) < 1e-5
        share = share + weight[0, i].double()
    wanted = exact.softmax(0)
    after = torch.cat([decay[0, 1:].double().flip(0).cumsum(0).flip(0), torch.zeros(1, 3)])
    assert relative_error(weight[0].double() * after.exp(), wanted) < 1e-4
    assert relative_error(last[0], exact.logsumexp(0)) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_equal_logits_over_long_rows_keep_their_digits(backend):
    length = 20_000
    weight, decay, last = running_softmax(torch.full((1, length, 1), 5.0), torch.ones(1, length, dtype=torch.int32), backend=backend)
    count = torch.arange(1, length + 1, dtype=torch.float64)
    assert relative_error(weight[0, :, 0], 1 / count) < 1e-5 and abs(float(last) - 5 - float(count[-1].log())) < 1e-5
    assert relative_error(decay[0, 1:, 0].sum(), -count[-1].log()) < 1e-4


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@torch.no_grad()
def test_padding_leaves_the_state_as_it_is_and_any_split_gives_the_whole(backend):
    tensors, document = inputs(37, torch.float32), layouts(37)
    whole = running_softmax(**tensors, document_bt=document, backend=backend)
    assert relative_error(whole[2][4], tensors["state_bi"][4]) < 1e-6 and not whole[0][4].any()
    state, parts, at = tensors["state_bi"], [], 0
    rows = torch.tensor([0, 2])  # of one document, so that a state can go on
    for size in (1, 9, 16, 11):
        part = {"logits_bti": tensors["logits_bti"][rows, at : at + size], "document_bt": document[rows, at : at + size]}
        *found, state = running_softmax(**part, state_bi=state[rows] if at == 0 else state, backend=backend)
        parts.append(torch.stack(found))
        at += size
    assert relative_error(torch.cat(parts, dim=2), torch.stack(whole[:2])[:, rows]) < 1e-5
    assert relative_error(state, whole[2][rows]) < 1e-5


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(RecipeError, match=r"document must be \[2, 3\] beside logits \[2, 3, 4\], but is \[2, 4\]"):
        running_softmax(torch.ones(2, 3, 4), torch.ones(2, 4))
