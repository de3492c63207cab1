"""The Triton form of every operation equals its reference under Triton's interpreter: values and gradients, at odd shapes.

`test_triton.py` runs this file in a process that has TRITON_INTERPRET=1 from its start, and counts by the names of the tests. A program
costs milliseconds there, so shapes are tiny, but each crosses a block's border and stops within one.
"""

from __future__ import annotations

import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from mmlm.backbone.attention import Attention
from mmlm.backbone.config import AttentionConfig
from mmlm.kernels import dispatch
from mmlm.kernels.attention.fast import attention
from mmlm.kernels.conv1d.fast import causal_conv1d
from mmlm.kernels.cross_entropy import tiles
from mmlm.kernels.cross_entropy.fast import linear_cross_entropy_terms
from mmlm.kernels.delta_rule.fast import delta_rule
from mmlm.kernels.gla.fast import gla
from mmlm.kernels.long_conv.fast import long_conv
from mmlm.kernels.parity import disagreements, with_gradients
from mmlm.kernels.running_softmax.fast import running_softmax
from mmlm.kernels.selective_scan.fast import selective_scan
from mmlm.kernels.ssd.fast import ssd
from mmlm.layout import Layout
from tests.kernels.test_conv1d import LAYOUTS as CONV_LAYOUTS
from tests.kernels.test_conv1d import inputs as conv_inputs
from tests.kernels.test_cross_entropy import inputs as loss_inputs
from tests.kernels.test_delta_rule import inputs as delta_inputs
from tests.kernels.test_elementwise import OPS as ELEMENTWISE
from tests.kernels.test_elementwise import inputs as elementwise_inputs
from tests.kernels.test_gla import inputs as gla_inputs
from tests.kernels.test_gla import layouts
from tests.kernels.test_running_softmax import inputs as softmax_inputs
from tests.kernels.test_selective_scan import inputs as scan_inputs
from tests.kernels.test_ssd import LAYOUTS
from tests.kernels.test_ssd import inputs as ssd_inputs

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
TOLERANCE = {torch.float64: 1e-9, F32: 1e-5, BF16: 1e-2, F16: 2e-3}


@pytest.fixture(scope="module", autouse=True)
def patched_once():
    """Triton's interpreter replaces the functions of its language anew whenever a program calls another, half of the time of a run."""
    replace = interpreter._patch_lang

    def once(function):
        languages = [x for x in function.__globals__.values() if x is tl or x is tl.core]
        if languages and not any(tl.core.is_builtin(x.load) for x in languages):
            return interpreter._LangPatchScope()
        return replace(function)

    interpreter._patch_lang = once
    yield
    interpreter._patch_lang = replace


def check(function, tensors, precision, **options):
    """Outputs and gradients of the Triton form, and of the reference in float64. A tensor that asks for no gradient stays as it is."""
    options |= {k: x for k, x in tensors.items() if x is None}
    tensors = {k: x for k, x in tensors.items() if x is not None}
    exact = {k: x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x for k, x in tensors.items()}
    wanted = with_gradients(function, exact, **options, backend="reference")
    got = with_gradients(function, tensors, **options, backend="triton")
    assert disagreements(got, wanted, TOLERANCE[precision]) == []


def packed(tensors, row, carried):
    """A row of the inputs of the other forms' tests, which have three, and where not all rows continue a second one of padding alone."""
    some = carried == "some continued"
    cut = {k: x[: 1 + some] if x is not None and len(x) == 3 and x.ndim > 1 else x for k, x in tensors.items()}
    document = torch.tensor([row, [0] * len(row)][: 1 + some])
    given = {"document_bt": document, "continues": torch.tensor([True, False]) if some else None}
    return {k: None if x is None else x.detach().requires_grad_() for k, x in cut.items()}, given


@pytest.mark.parametrize(
    ("length", "layout", "carried", "dtype", "size"),
    [
        (1, "plain", "fresh", F32, {}),
        (37, "packed", "some continued", F32, {"groups": 1, "heads": 1}),
        (18, "padding between", "continued", F32, {"groups": 1, "p": 40, "n": 33}),
        (20, "padded", "continued", BF16, {"groups": 1}),
        (16, "plain", "continued", F16, {}),
    ],
)
def test_ssd(length, layout, carried, dtype, size, nan_filled_memory):
    tensors = ssd_inputs(length, dtype, state=carried != "fresh", **{"heads": 2, **size})
    tensors, given = packed(tensors, LAYOUTS[layout](length), carried)
    check(ssd, tensors, dtype, **given, chunk_size=16)


def attention_inputs(dtype, b, t, length, heads, groups, channels):
    """[b, h, t, k], transposed views as the model's are; values have four channels more."""
    g = torch.Generator().manual_seed(t + length)
    shapes = {"q_bhtk": (b, t, heads, channels), "k_bglk": (b, length, groups, channels), "v_bglk": (b, length, groups, channels + 4)}
    return {k: torch.randn(*s, generator=g, dtype=torch.float64).transpose(1, 2).to(dtype).requires_grad_() for k, s in shapes.items()}


SLOPES = torch.tensor([0.5, 0.1])
ATTENTION = {
    "causal": (F32, (2, 37, 37, 1, 1, 20), {"causal": True}),
    "one query after a past": (F32, (2, 1, 21, 2, 1, 8), {"causal": True, "window": 9}),
    "window, shared keys, cap": (F32, (1, 21, 37, 4, 2, 20), {"causal": True, "window": 6, "softcap": 2.0}),
    "both ways, slopes, half": (F16, (1, 19, 19, 2, 2, 16), {"causal": False, "slopes_h": SLOPES}),
    "both ways in a window, mask of all heads": (F32, (2, 20, 20, 2, 1, 33), {"causal": False, "window": 7, "mask": "rows"}),
    "mask of each head": (BF16, (1, 18, 18, 2, 2, 8), {"causal": True, "mask": "heads"}),
    "documents": (F32, (2, 40, 40, 1, 1, 12), {"causal": True, "documents": True}),
    "documents both ways in a window": (BF16, (2, 40, 40, 1, 1, 12), {"causal": False, "window": 5, "documents": True}),
}


@pytest.mark.parametrize("case", ATTENTION)
def test_attention(case, monkeypatch, nan_filled_memory):
    from mmlm.kernels.attention import triton

    for programs in (triton._forward, triton._query_gradients, triton._key_gradients):
        monkeypatch.setattr(programs, "constants", {"BM": 16, "BN": 16})
    dtype, sizes, given = ATTENTION[case]
    given, (t, length) = dict(given), sizes[1:3]
    if kind := given.pop("mask", None):
        shape = {"rows": (2, 1, t, length), "heads": (1, 2, t, length)}[kind]
        given["mask"] = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.6
        given["mask"][..., 5, :] = False  # a query that sees nothing
    if given.pop("documents", None):
        given["document_bt"] = torch.tensor([[0] * 2 + [1] * 17 + [2] + [3] * 14 + [0] * 6, [7] * 3 + [0] * 2 + [7] * 20 + [9] * 15])
    check(attention, attention_inputs(dtype, *sizes), dtype, **given)


BETWEEN = [0, 1, 1, 0, 1, 2, 2, 2, 2, 0]  # padding between tokens, which lengthens the distances of a window


@pytest.mark.parametrize(
    ("window", "row", "at_once"), [(None, BETWEEN, True), (2, [1, 1, 1, 2, 2, 2, 2, 2, 0, 0], True), (2, BETWEEN, False)]
)
def test_attention_of_a_layer_goes_through_packed_documents_in_one_call(window, row, at_once, monkeypatch):
    torch.manual_seed(0)
    layer, document = Attention(AttentionConfig(num_heads=2, num_kv_heads=1, window=window, rope=None), 8), torch.tensor([row])
    layout = Layout(document, torch.arange(len(row))[None, :, None])
    x_btd = torch.randn(1, len(row), 8).requires_grad_()
    found = {}
    for name in ("torch", "triton"):
        with dispatch.forced(name), monkeypatch.context() as patch:
            if name == "triton" and at_once:
                patch.setattr(Layout, "plan", None)
            found[name] = with_gradients(lambda x_btd: layer(x_btd, layout)[0] * (document > 0)[..., None], {"x_btd": x_btd})
    assert disagreements(found["triton"], found["torch"], 1e-5) == []


@pytest.mark.parametrize(
    ("length", "taps", "layout", "carried", "dtype"),
    [
        (1, 4, "plain", "continued", F32),
        (2, 4, "packed", "some continued", F32),
        (40, 4, "padding between", "some continued", F32),
        (35, 2, "padded", "fresh", BF16),
        (6, 1, "plain", "fresh", F16),
        (33, 11, "one token each", "continued", F32),
    ],
)
def test_causal_conv1d(length, taps, layout, carried, dtype, nan_filled_memory):
    tensors = conv_inputs(length, dtype, taps, bias=length != 35, state=carried != "fresh", channels=37 + 64 * (length == 2))
    tensors, given = packed(tensors, CONV_LAYOUTS[layout](length), carried)
    check(causal_conv1d, {"bias_c": None, **tensors}, dtype, activation=None if taps == 1 else "silu", **given)


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize(("width", "dtype"), [(3, F32), (45, BF16), (64, F16)])
def test_elementwise(name, width, dtype, nan_filled_memory):
    check(ELEMENTWISE[name], elementwise_inputs(name, dtype, width), dtype)


def test_rms_norm_of_a_float32_stream_that_takes_bfloat16_branches():
    tensors = elementwise_inputs("add_rms_norm", F32, 45)
    tensors["x"] = tensors["x"].detach().bfloat16().requires_grad_()
    check(ELEMENTWISE["add_rms_norm"], tensors, BF16, dtype=BF16)


def test_rope_of_part_of_a_slice_with_shared_angles():
    qkv = torch.randn(2, 6, 5, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
    angle = torch.randn(1, 6, 10, generator=torch.Generator().manual_seed(1))

    def turned(qkv, **given):
        return ELEMENTWISE["rope"](qkv[..., :3, :], qkv[..., 3:, :], angle.cos(), angle.sin(), **given)

    check(turned, {"qkv": qkv}, F32)


def test_rms_norm_of_many_rows_in_few_programs(monkeypatch):
    from mmlm.kernels.rms_norm import triton

    monkeypatch.setattr(triton, "_PARTS", 2)
    monkeypatch.setattr(triton, "_tile", lambda d: {"ROWS": 4, "WIDTH": triton.triton.next_power_of_2(d)})
    check(ELEMENTWISE["rms_norm"], elementwise_inputs("rms_norm", F32, 20), F32)


@pytest.mark.parametrize(
    ("dtype", "bias", "softcap", "tiled"), [(F32, True, None, True), (F32, False, 5.0, False), (BF16, True, 5.0, True)]
)
def test_linear_cross_entropy(dtype, bias, softcap, tiled, monkeypatch, nan_filled_memory):
    from mmlm.kernels.cross_entropy import triton

    monkeypatch.setattr(triton, "_BLOCK", 16)
    monkeypatch.setattr(tiles, "KEEP", 0 if tiled else 10**9)
    monkeypatch.setattr(tiles, "TILE", 24)
    tensors, target = loss_inputs(5, vocabulary=61, dtype=dtype, bias=bias)

    def terms(**given):  # the best row has no gradient and rounding may change it in bfloat16
        found = linear_cross_entropy_terms(**given, target_n=target, softcap=softcap, label_smoothing=0.1)
        return found if dtype == F32 else found[:4]

    check(terms, tensors, dtype)


def test_long_conv_of_few_taps():
    g = torch.Generator().manual_seed(0)
    tensors = {"x_btc": torch.randn(2, 21, 5, generator=g), "kernel_ck": torch.randn(5, 7, generator=g)}
    tensors = {k: x.requires_grad_() for k, x in (tensors | {"state_bck": torch.randn(2, 5, 6, generator=g)}).items()}
    check(long_conv, tensors, F32, document_bt=torch.tensor([[1] * 9 + [2] * 12, [3] * 21]))


@pytest.mark.parametrize(
    ("length", "layout", "carried", "dtype", "size"),
    [
        (1, "plain", "fresh", torch.float64, {}),
        (18, "padding between", "continued", F32, {"channels": 37}),
        (17, "packed", "some continued", BF16, {"gate": False}),
    ],
)
def test_selective_scan(length, layout, carried, dtype, size, nan_filled_memory):
    tensors = scan_inputs(length, dtype, state=carried != "fresh", **{"channels": 5, **size})
    tensors, given = packed(tensors, LAYOUTS[layout](length), carried)
    if "gate_bti" in tensors:  # a slice of something wider
        tensors["gate_bti"] = tensors["gate_bti"].detach().repeat(1, 1, 2)[..., : tensors["x_bti"].shape[2]].requires_grad_()
    check(selective_scan, {"gate_bti": None, **tensors}, dtype, negative=layout == "packed", **given)


@pytest.mark.parametrize(
    ("length", "layout", "carried", "decay", "dtype", "size"),
    [
        (1, "plain", "fresh", True, F32, {}),
        (33, "packed", "continued", True, F32, {"v": 40, "groups": 1, "heads": 1}),
        (18, "padding between", "continued", False, F32, {"k": 20, "groups": 1}),
        (17, "padded", "some continued", True, BF16, {"groups": 1, "heads": 1}),
    ],
)
def test_delta_rule(length, layout, carried, decay, dtype, size, nan_filled_memory):
    tensors = delta_inputs(length, dtype, state=carried != "fresh", decay=decay, **{"heads": 2, **size})
    tensors, given = packed(tensors, LAYOUTS[layout](length), carried)
    check(delta_rule, tensors, dtype, **given)


@pytest.mark.parametrize(("length", "state", "dtype", "size"), [(20, True, F32, {"v": 40}), (3, False, BF16, {"k": 20})])
def test_gla(length, state, dtype, size, nan_filled_memory):
    tensors, document = gla_inputs(length, dtype, state=state, rows=2, heads=1, **size), layouts(length)[[1, 3]]
    check(gla, tensors, dtype, document_bt=document, continues=torch.tensor([True, False]) if state else None)


@pytest.mark.parametrize(("length", "state", "dtype"), [(17, True, F32), (14, False, BF16)])
def test_running_softmax(length, state, dtype, nan_filled_memory):
    tensors, continues = softmax_inputs(length, dtype, state=state, rows=2), torch.tensor([True, False]) if state else None
    check(running_softmax, tensors, dtype, document_bt=layouts(length)[[3, 1]], continues=continues)
