"""The language-model loss without full logits equals the one with them: values, gradients, rows, weights, options."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F

from mmlm.base.errors import DataError, RecipeError
from mmlm.kernels.cross_entropy import tiles
from mmlm.kernels.cross_entropy.fast import linear_cross_entropy, linear_cross_entropy_terms
from mmlm.kernels.cross_entropy.tolerance import TOLERANCE
from mmlm.kernels.dispatch import available
from mmlm.kernels.parity import disagreements, relative_error, with_gradients

BACKENDS = available("linear_cross_entropy", but="reference")


def inputs(tokens=19, width=12, vocabulary=101, dtype=torch.float32, bias=False):
    g = torch.Generator().manual_seed(tokens)
    tensors = {"x_nd": (tokens, width), "weight_vd": (vocabulary, width)} | ({"bias_v": (vocabulary,)} if bias else {})
    made = {k: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for k, shape in tensors.items()}
    return made, torch.randint(0, vocabulary, (tokens,), generator=g)


@pytest.fixture(params=["tiled", "kept"])
def way(request, monkeypatch):
    monkeypatch.setattr(tiles, "KEEP", 0 if request.param == "tiled" else 10**9)
    monkeypatch.setattr(tiles, "TILE", 32)
    return request.param


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("tokens", [1, 19])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("bias", [False, True])
def test_every_term_and_its_gradients_equal_those_of_full_logits(backend, dtype, tokens, softcap, bias, way, nan_filled_memory):
    if backend == "native" and dtype == torch.float64:
        dtype = torch.float32
    tensors, target = inputs(tokens, dtype=dtype, bias=bias)
    exact = {k: v.detach().double().requires_grad_() for k, v in tensors.items()}
    given = {"target_n": target, "softcap": softcap, "label_smoothing": 0.1}
    wanted = with_gradients(linear_cross_entropy_terms, exact, **given, backend="reference")
    got = with_gradients(linear_cross_entropy_terms, tensors, **given, backend=backend)
    best = wanted.pop("output 4"), got.pop("output 4")
    assert disagreements(got, wanted, TOLERANCE[dtype]) == []
    assert dtype == torch.bfloat16 or torch.equal(*best)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_the_loss_is_that_of_torch(backend, way):
    tensors, target = inputs(bias=True)
    logits = F.linear(tensors["x_nd"], tensors["weight_vd"], tensors["bias_v"])
    weight = torch.rand(19, generator=torch.Generator().manual_seed(1))
    plain = (F.cross_entropy(logits, target, label_smoothing=0.1, reduction="none") + 1e-2 * logits.logsumexp(1) ** 2) @ weight
    ours = linear_cross_entropy(**tensors, target_n=target, weight_n=weight, label_smoothing=0.1, z_loss=1e-2, backend=backend)
    assert relative_error(ours, plain) < 1e-6
    for got, wanted in zip(*(torch.autograd.grad(y, list(tensors.values())) for y in (ours, plain))):
        assert relative_error(got, wanted) < 1e-5


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize("kind", ["range", "slice", "run of ids", "ids"])
def test_only_allowed_rows_take_part(backend, kind, way):
    tensors, target = inputs(bias=True)
    ids = torch.arange(20, 90) if kind != "ids" else torch.arange(1, 101, 3)
    rows = {"range": range(20, 90), "slice": slice(20, 90)}.get(kind, ids)
    target = ids[target % len(ids)]
    others = torch.ones(101, dtype=torch.bool).index_fill(0, ids, False)
    logits = F.linear(tensors["x_nd"], tensors["weight_vd"], tensors["bias_v"]).masked_fill(others, -torch.inf)
    plain = F.cross_entropy(logits, target, reduction="sum")
    ours = linear_cross_entropy(**tensors, target_n=target, rows=rows, backend=backend)
    assert relative_error(ours, plain) < 1e-6
    for got, wanted in zip(*(torch.autograd.grad(y, list(tensors.values())) for y in (ours, plain))):
        assert relative_error(got, wanted) < 1e-5
    terms = linear_cross_entropy_terms(**tensors, target_n=target, rows=rows, backend=backend)
    assert torch.equal(terms.best, logits.argmax(1))
    with pytest.raises(DataError, match="target 0 of token 0 is not"):
        linear_cross_entropy(**tensors, target_n=target * 0, rows=rows, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_without_weight_are_dropped_before_any_product(backend, monkeypatch):
    tensors, target = inputs()
    weight = (torch.arange(19) % 3 == 0).float()
    seen = []

    class Watched(tiles.Running):
        def __init__(self, wanted_n, *rest):
            seen.append(len(wanted_n))
            super().__init__(wanted_n, *rest)

    monkeypatch.setattr(tiles, "Running", Watched)
    with_gap = linear_cross_entropy(**tensors, target_n=torch.where(weight > 0, target, -100), weight_n=weight, backend=backend)
    kept = linear_cross_entropy(tensors["x_nd"][weight > 0], tensors["weight_vd"], target[weight > 0], weight[weight > 0], backend=backend)
    assert torch.equal(with_gap, kept) and seen == [7, 7]


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_frozen_rows_and_no_tokens_at_all(backend, way):
    tensors, target = inputs()
    frozen = tensors["weight_vd"].detach()
    (dx,) = torch.autograd.grad(linear_cross_entropy(tensors["x_nd"], frozen, target, backend=backend), tensors["x_nd"])
    whole = linear_cross_entropy(**tensors, target_n=target, backend="reference")
    assert relative_error(dx, torch.autograd.grad(whole, tensors["x_nd"])[0]) < 1e-5
    none = linear_cross_entropy(tensors["x_nd"], tensors["weight_vd"], target, torch.zeros(19), backend=backend)
    none.backward()
    assert none == 0 and not tensors["weight_vd"].grad.any() and not tensors["x_nd"].grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_under_autocast_products_are_bfloat16_and_the_loss_is_float32(backend, way):
    tensors, target = inputs(tokens=40, width=32)
    exact = with_gradients(linear_cross_entropy, tensors, target_n=target)
    with torch.autocast("cpu", torch.bfloat16):
        got = with_gradients(linear_cross_entropy, tensors, target_n=target, backend=backend)
    assert got["output 0"].dtype == got["d weight_vd"].dtype == torch.float32
    assert disagreements(got, exact, TOLERANCE[torch.bfloat16]) == []
    assert relative_error(got["output 0"], exact["output 0"]) > 1e-7


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_products_of_a_type_that_compiled_code_cannot_read_are_not_given_to_it(dtype, way):
    tensors, target = inputs()
    found = linear_cross_entropy(**tensors, target_n=target, product_dtype=dtype)
    assert relative_error(found, linear_cross_entropy(**tensors, target_n=target, backend="reference")) < 1e-2
    if dtype == torch.float16:
        with torch.autocast("cpu", dtype):
            assert torch.equal(linear_cross_entropy(**tensors, target_n=target), found)
    with pytest.raises(RecipeError, match="back end 'native' cannot serve linear_cross_entropy: products in float"):
        linear_cross_entropy(**tensors, target_n=target, product_dtype=dtype, backend="native")


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_logits_stay_finite_and_gradcheck_passes(backend, way):
    tensors, target = inputs(tokens=3, width=3, vocabulary=40, dtype=torch.float64, bias=True)
    if backend == "torch":
        assert torch.autograd.gradcheck(
            lambda x, w, b: linear_cross_entropy_terms(x, w, target, bias_v=b, softcap=3.0, backend=backend)[:4], tuple(tensors.values())
        )
    huge = {k: (v.detach().float() * 300).requires_grad_() for k, v in tensors.items()}
    wanted = with_gradients(linear_cross_entropy_terms, {k: v.detach().double().requires_grad_() for k, v in huge.items()}, target_n=target)
    got = with_gradients(linear_cross_entropy_terms, huge, target_n=target, backend=backend)
    assert disagreements(got, wanted, 1e-4) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_held_after_the_backward_pass(backend, way):
    tensors, target = inputs()
    gc.disable()
    gc.freeze()  # what there is; only what comes is looked at
    try:
        linear_cross_entropy(**tensors, target_n=target, backend=backend)
        assert not any(issubclass(type(x), torch.Tensor) for x in gc.get_objects())
    finally:
        gc.unfreeze()
        gc.enable()


def test_options_that_cannot_be_are_refused():
    tensors, target = inputs()
    with pytest.raises(RecipeError, match="softcap must be above 0, but is -1"):
        linear_cross_entropy(**tensors, target_n=target, softcap=-1)
    with pytest.raises(RecipeError, match="rows must be increasing"):
        linear_cross_entropy(**tensors, target_n=target, rows=torch.tensor([5, 3]))
    for rows in (range(50, 102), torch.tensor([3, 101]), range(7, 7)):
        with pytest.raises(RecipeError, match="but the output matrix holds 0 to 100"):
            linear_cross_entropy(**tensors, target_n=target, rows=rows)
    with pytest.raises(DataError, match="target 101 of token 0 is not within 0 to 100"):
        linear_cross_entropy(**tensors, target_n=target * 0 + 101)
