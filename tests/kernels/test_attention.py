"""Every form of attention equals full float32 scores: values and gradients, grouped heads, windows, masks, caps, queries after a past."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch
import torch.nn.functional as F

from mmlm.base.errors import RecipeError
from mmlm.kernels import dispatch
from mmlm.kernels.attention import blocks, fast, native
from mmlm.kernels.attention.fast import attention, packed_attention
from mmlm.kernels.attention.reference import Rule
from mmlm.kernels.attention.tolerance import TOLERANCE
from mmlm.kernels.dispatch import KERNELS, available, choose, forced
from mmlm.kernels.parity import covering, disagreements, forms, relative_error, with_gradients
from mmlm.layout import Layout

BACKENDS = available("attention", but="reference")
FORMS = forms("attention", TOLERANCE)
SHORT = [torch.float32, torch.bfloat16]  # what the compiled form takes

RULES = [{"causal": True}, {"causal": False}, {"causal": True, "window": 9}, {"causal": False, "window": 20}]
RULES += [{"causal": True, "window": 9, "sinks": 3}]
CASES = covering(2, FORMS, RULES, ["none", "rows", "heads", "one"], [None, 2.0])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of the PyTorch form that cut the small shapes here."""
    monkeypatch.setattr(fast, "FEW_SCORES", 1)
    monkeypatch.setattr(blocks, "BLOCK", 16)
    monkeypatch.setattr(blocks, "SCORES", 2000)


@pytest.fixture(params=["tiles", "vectors"])
def unit(request, monkeypatch):
    """The compiled form with and without AMX."""
    monkeypatch.setattr(native, "TILES", request.param == "tiles")


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


def check(backend, tensors, dtype, function=attention, **given):
    """Values and gradients of a back end beside those of the reference in float64."""
    exact = {k: v.detach().double().requires_grad_() for k, v in tensors.items()}
    wanted = with_gradients(function, exact, **given, backend="reference")
    got = with_gradients(function, tensors, **given, backend=backend)
    assert got["output 0"].dtype == dtype
    assert disagreements(got, wanted, TOLERANCE[dtype]) == []


@pytest.mark.parametrize(("form", "rule", "mask", "softcap"), CASES, ids=str)
def test_every_form_equals_full_scores(form, rule, mask, softcap, nan_filled_memory):
    backend, dtype = form
    check(backend, inputs(dtype), dtype, **rule, softcap=softcap, mask=some_mask(mask, 37, 37), scale=0.3)


@pytest.mark.skipif("native" not in BACKENDS, reason="no compiler")
@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("rule", [*RULES, {"causal": True, "window": 140, "sinks": 40}], ids=str)
@pytest.mark.parametrize(("t", "length", "channels"), [(16, 16, 32), (130, 130, 64), (33, 270, 20), (290, 290, 96), (1, 140, 128)])
def test_the_compiled_form_over_many_blocks(dtype, rule, t, length, channels, unit, nan_filled_memory):
    tensors = {k: v.detach()[:1].requires_grad_() for k, v in inputs(dtype, t, length, channels=channels).items()}
    check("native", tensors, dtype, **rule)


def far_apart(length: int) -> torch.Tensor:
    """Of each of six heads a band of its own [1, 6, length, length], a far key that all see, and 40 queries that see nothing."""
    distance = torch.arange(length)[:, None] - torch.arange(length)
    bands = torch.stack([(distance >= 20 * head - 40) & (distance < 20 * head - 20) for head in range(6)])
    bands[:, :, -3] = True
    bands[:, 70:110] = False
    return bands[None]


@pytest.mark.skipif("native" not in BACKENDS, reason="no compiler")
@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("rule", [{"causal": False}, {"causal": True}, {"causal": False, "window": 100}], ids=str)
@pytest.mark.parametrize("length", [201, 256])
def test_masks_that_hide_whole_blocks(dtype, rule, length, unit, nan_filled_memory):
    check("native", inputs(dtype, length, length), dtype, **rule, mask=far_apart(length))


@pytest.mark.skipif("native" not in BACKENDS, reason="no compiler")
def test_what_a_mask_hides_costs_little():
    tensors, seconds = inputs(torch.float32, 1200, 1200), {}
    distance = torch.arange(1200)[:, None] - torch.arange(1200)
    for name, mask in {"whole": distance > -1200, "near": (distance >= 0) & (distance < 60)}.items():
        tries = []
        for _ in range(3):
            begin = time.thread_time()
            with_gradients(attention, tensors, causal=False, mask=mask, backend="native")
            tries.append(time.thread_time() - begin)
        seconds[name] = min(tries)
    assert seconds["near"] < 0.6 * seconds["whole"]  # a twentieth of the scores are seen


@pytest.mark.skipif("native" not in BACKENDS, reason="no compiler")
@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_compiled_form_with_biases_by_distance(dtype, softcap, unit, nan_filled_memory):
    slopes = torch.tensor([0.5, 0.25, 0.1, 0.0, 0.03, 0.01])
    for rule in RULES:
        check("native", inputs(dtype, 40, 50), dtype, **rule, slopes_h=slopes, softcap=softcap)


@pytest.mark.skipif("native" not in BACKENDS, reason="no compiler")
@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_one_token_sees_itself_alone(dtype, unit):
    tensors = inputs(dtype, 1, 1, groups=6)
    found = with_gradients(attention, tensors, causal=True, backend="native")
    assert torch.equal(found["output 0"], tensors["v_bglk"])
    assert max(found["d q_bhtk"].abs().max(), found["d k_bglk"].abs().max()) < 1e-6


def plans() -> list:
    """Packed documents with padding; a grid's rows and columns; sequences with masks of their own."""
    document = torch.tensor([[1] * 3 + [2] * 150 + [0] * 7 + [3] * 40, [0] * 2 + [1] * 3 + [0] * 60 + [2] * 135]).int()
    position = torch.stack([torch.arange(200) // 9, torch.arange(200) % 9], dim=1).expand(2, 200, 2)
    g = torch.Generator().manual_seed(0)
    packed = Layout(document, position, ("row", "column"))
    some = dataclasses.replace(packed, branch=torch.randint(0, 3, (2, 200), generator=g), mutual=torch.randint(0, 3, (2, 200), generator=g))
    whole = Layout(torch.tensor([[1] * 130 + [2] * 70] * 2).int(), position, ("row", "column"))
    found = []
    for name, layout in {"documents": packed, "masks": some, "no padding": whole}.items():
        for over in (None, "row", "column"):
            for causal in (False, True):
                title = f"{name} {over or ''} {'causal' if causal else ''}"
                found.append(pytest.param(layout.plan(over, causal=causal), causal, id=title))
    return found


@pytest.mark.parametrize(("backend", "dtype"), FORMS, ids=str)
@pytest.mark.parametrize(("plan", "causal"), plans())
def test_packed_sequences_attend_within_themselves(backend, dtype, plan, causal, nan_filled_memory):
    g = torch.Generator().manual_seed(0)
    heads = {"q_nhk": 4, "k_ngk": 2, "v_ngk": 2}
    tensors = {name: torch.randn(400, n, 24, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for name, n in heads.items()}
    check(backend, tensors, dtype, packed_attention, plan=plan, causal=causal, window=50 if causal else None, sinks=2 if causal else 0)


@pytest.mark.skipif("native" not in BACKENDS, reason="no compiler")
def test_threads_do_not_change_a_bit(monkeypatch):
    tensors = inputs(torch.bfloat16, 200, 200)
    found = []
    for threads in (1, 2):
        monkeypatch.setattr("mmlm.kernels.native.threads", lambda seconds, threads=threads: threads)
        found.append(with_gradients(attention, tensors, causal=True, backend="native"))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.skipif("native" not in BACKENDS, reason="no compiler")
def test_auto_takes_the_compiled_form_for_all_that_it_serves_and_else_pytorch():
    single = [x.detach() for x in inputs(torch.float32).values()]
    rule, slopes = Rule(True, 9, 2, 0.1, 2.0), torch.ones(6)
    document = torch.ones(3, 37).int()
    assert choose("attention", "auto", *single, torch.ones(1, 1, 37, 37) > 0, slopes, rule, document) == "native"
    assert choose("packed_attention", "auto", *single, None, slopes, rule) == "native"
    assert choose("attention", "auto", *(x.double() for x in single), None, None, rule, None) == "torch"
    refused = {"dtype float64": {"v_bglk": single[2].double(), "q_bhtk": single[0].double(), "k_bglk": single[1].double()}}
    refused |= {"differ in dtype": {"v_bglk": single[2].bfloat16()}, "no gradient for slopes": {"slopes_h": slopes.requires_grad_()}}
    for reason, changed in refused.items():
        with pytest.raises(RecipeError, match=reason):
            attention(**(dict(zip(("q_bhtk", "k_bglk", "v_bglk"), single)) | changed), causal=True, backend="native")


def test_packed_sequences_go_to_a_back_end_that_attention_alone_has_by_their_lengths(monkeypatch):
    layout, called = Layout.plain(2, 5), []
    layout.document[0, 2:] = 2
    monkeypatch.setitem(KERNELS["attention"], "triton", lambda q, *rest: called.append(list(q.shape)) or fast.attention_torch(q, *rest))
    monkeypatch.setitem(KERNELS["attention"].serves, "triton", dispatch.always)
    tensors = [torch.randn(10, heads, 8, generator=torch.Generator().manual_seed(heads)) for heads in (2, 1, 1)]
    with forced("triton"):
        found = packed_attention(*tensors, layout.plan(causal=True), causal=True, window=4)
    assert relative_error(found, packed_attention(*tensors, layout.plan(causal=True), causal=True, window=4, backend="reference")) < 1e-5
    assert called == [[1, 2, 2, 8], [1, 2, 3, 8], [1, 2, 5, 8]]
    with pytest.raises(RecipeError, match="packed_attention has no back end 'triton', .*on a GPU packed rows go to attention"):
        packed_attention(*tensors, layout.plan(causal=True), causal=True, backend="triton")


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


@pytest.mark.parametrize(("backend", "dtype"), FORMS, ids=str)
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("values", [20, 24])
def test_as_many_key_heads_one_row_of_the_batch_and_values_of_another_size(backend, dtype, rows, values):
    tensors = {k: v.detach()[:rows].requires_grad_() for k, v in inputs(dtype, groups=6).items()}
    tensors["v_bglk"] = tensors["v_bglk"].detach()[..., :values].requires_grad_()
    check(backend, tensors, dtype, causal=True)


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
@pytest.mark.parametrize("rule", RULES[:4], ids=str)
def test_documents_of_packed_rows_are_attended_to_apart(backend, rule):
    document = torch.tensor([[0] * 2 + [1] * 17 + [2] + [1] * 11 + [0] * 6, [7] * 37, [3] * 9 + [0] * 2 + [3] * 6 + [4] * 20])
    tensors, more = inputs(torch.float32), {"mask": some_mask("heads", 37, 37)} if rule["causal"] else {}
    exact = {k: v.detach().double().requires_grad_() for k, v in tensors.items()}
    wanted = with_gradients(attention, exact, document_bt=document, **rule, **more, backend="reference")
    assert disagreements(with_gradients(attention, tensors, document_bt=document, **rule, **more, backend=backend), wanted, 1e-5) == []
    alone = {k: v.detach()[:1, :, 2:19] for k, v in tensors.items()}  # the first document of the first row
    if not more:
        assert relative_error(wanted["output 0"][:1, :, 2:19], attention(**alone, **rule, backend="reference")) < 1e-5
    assert not wanted["output 0"][0, :, :2].any() and not wanted["d v_bglk"][0, :, -6:].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_that_see_nothing_give_zeros_and_finite_gradients(backend):
    tensors = inputs(torch.float32)
    found = with_gradients(attention, tensors, causal=False, mask=torch.zeros(37, 37, dtype=torch.bool), backend=backend)
    assert all(not x.any() for x in found.values())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize(("backend", "dtype"), forms("attention", SHORT), ids=str)
def test_a_query_that_is_no_number_gives_none_and_spoils_no_other(backend, dtype, bad):
    tensors = {k: x.detach().clone() for k, x in inputs(dtype).items()}
    tensors["q_bhtk"][1, 2, 20] = bad
    lost = attention(**tensors, causal=True, backend=backend).isnan().all(-1)
    assert lost[1, 2, 20] and int(lost.sum()) == 1


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(RecipeError, match="6 query heads cannot share 4 key heads"):
        attention(**inputs(torch.float32, groups=4), causal=True)
    for document, length in ((torch.ones(3, 36), 37), (torch.ones(3, 37), 38)):
        with pytest.raises(RecipeError, match="queries and keys the same tokens"):
            attention(**inputs(torch.float32, length=length), causal=True, document_bt=document)
    with pytest.raises(RecipeError, match="37 causal queries need as many keys at least, but there are 30"):
        attention(**inputs(torch.float32, length=30), causal=True)


def test_what_is_asked_of_attention_holds_for_packed_rows(monkeypatch):
    plan = Layout.plain(1, 3).plan(causal=True)
    q = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    called = []
    monkeypatch.setitem(KERNELS["packed_attention"], "reference", lambda *given: called.append("reference"))
    monkeypatch.setitem(KERNELS["packed_attention"], "torch", lambda *given: called.append("torch"))
    monkeypatch.setenv("MMLM_KERNEL", "attention=reference")
    packed_attention(q, q, q, plan, causal=True)
    monkeypatch.setenv("MMLM_KERNEL", "attention=reference,packed_attention=torch")
    packed_attention(q, q, q, plan, causal=True)
    assert called == ["reference", "torch"]
