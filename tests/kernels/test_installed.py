"""Packages that the user has installed are called as their documentation says, and give what the reference gives; else they are refused.

The packages need a GPU. Here stand-ins take their place that keep to the documented arguments, note them, and compute with the reference.
"""

from __future__ import annotations

import importlib.machinery
import math
import sys
import types

import pytest
import torch
import torch.nn.functional as F

from mmlm.base.errors import RecipeError
from mmlm.kernels import dispatch
from mmlm.kernels.attention.fast import attention
from mmlm.kernels.attention.reference import Rule
from mmlm.kernels.conv1d.fast import causal_conv1d
from mmlm.kernels.conv1d.reference import causal_conv1d_reference
from mmlm.kernels.delta_rule.fast import delta_rule
from mmlm.kernels.dispatch import choose, forced
from mmlm.kernels.parity import disagreements, with_gradients
from mmlm.kernels.selective_scan.fast import selective_scan
from mmlm.kernels.ssd.fast import ssd

BF16 = torch.bfloat16
DOCUMENTS = {
    "plain": [[1] * 21, [3] * 21],
    "packed": [[1] * 9 + [2] * 12, [4] * 21],
    "padded": [[1] * 9 + [2] * 5 + [0] * 7, [0] * 21],
    "padding between": [[0] * 2 + [1] * 9 + [0] * 3 + [2] * 7, [5] * 21],
}
seen: list[dict] = []


def flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False,
    return_attn_probs=False,
):  # fmt: skip
    """[b, t, h, k]; query i sees the keys from i + l - t - left to i + l - t + right; minus slope |distance|; no key: zeros."""
    seen.append({"window_size": window_size, "softmax_scale": softmax_scale})
    shared, (t, length) = q.shape[2] // k.shape[2], (q.shape[1], k.shape[1])
    q, k, v = q.float(), *(x.float().repeat_interleave(shared, dim=2) for x in (k, v))
    z = torch.einsum("bthk,blhk->bhtl", q, k) * (softmax_scale or 1 / math.sqrt(q.shape[3]))
    z = softcap * torch.tanh(z / softcap) if softcap else z
    distance = torch.arange(length - t, length)[:, None] - torch.arange(length)
    if alibi_slopes is not None:
        assert alibi_slopes.dtype == torch.float32
        z = z - alibi_slopes[:, None, None] * distance.abs()
    left, right = window_size
    hidden = (distance < 0) & torch.tensor(causal)
    hidden = hidden | ((distance > left) & torch.tensor(left >= 0)) | ((-distance > right) & torch.tensor(right >= 0))
    p = torch.where(hidden.all(-1, keepdim=True), 0, z.masked_fill(hidden, -1e30).softmax(-1))
    return torch.einsum("bhtl,blhk->bthk", p, v).to(BF16)


def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **more):
    assert cu_seqlens_q.dtype == torch.int32 and isinstance(max_seqlen_q, int) and int(cu_seqlens_q.diff().max()) == max_seqlen_q
    borders = cu_seqlens_q.tolist()
    parts = [flash_attn_func(*(x[None, i:j] for x in (q, k, v)), **more)[0] for i, j in zip(borders, borders[1:])]
    return torch.cat(parts)


def mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, initial_states=None, seq_idx=None, return_final_states=False):  # noqa: N803
    assert seq_idx is None or seq_idx.dtype == torch.int32
    seen.append({"chunk_size": chunk_size, "seq_idx": seq_idx})
    document = torch.ones(x.shape[:2], dtype=torch.int32) if seq_idx is None else seq_idx + 1
    goes_on = torch.ones(len(x), dtype=torch.bool) if seq_idx is None else seq_idx[:, 0] == 0
    found = ssd(x, dt, A, B, C, document, initial_states, continues=goes_on, backend="reference")
    return found if return_final_states else found[0]


def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False):  # noqa: N803
    assert delta_softplus and return_last_state and {x.dtype for x in (A, D, delta_bias)} == {torch.float32}
    x, step, key, query, gate = (None if part is None else part.transpose(1, 2) for part in (u, delta, B, C, z))
    document = torch.ones(x.shape[:2], dtype=torch.int32)
    y, last = selective_scan(x, step, delta_bias, A, key, query, D, gate, document, backend="reference")
    return y.transpose(1, 2), last.detach()


def causal_conv1d_fn(
    x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False, final_states_out=None, activation=None
):  # fmt: skip
    assert x.stride(1) == 1 and (seq_idx is None or initial_states is None) and (initial_states is None or initial_states.stride(1) == 1)
    document = torch.ones(len(x), x.shape[2], dtype=torch.int32) if seq_idx is None else seq_idx + 1
    return causal_conv1d_reference(x.transpose(1, 2), weight, bias, document, initial_states, None, activation)[0].transpose(1, 2)


def chunk_gated_delta_rule(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    seen.append({"scale": scale, "cu_seqlens": cu_seqlens})
    assert q.shape[2] == v.shape[2] and q.dtype == k.dtype == v.dtype == BF16 and output_final_state
    q = q.float() * (k.shape[3] ** -0.5 if scale is None else scale)
    if cu_seqlens is None:
        return delta_rule(q, k, v, beta, g, torch.ones(q.shape[:2], dtype=torch.int32), initial_state, backend="reference")
    assert len(q) == 1 and (initial_state is None or len(initial_state) == len(cu_seqlens) - 1)
    borders, outputs, states = cu_seqlens.tolist(), [], []
    for n, (i, j) in enumerate(zip(borders, borders[1:])):
        parts = (None if x is None else x[:, i:j] for x in (q, k, v, beta, g))
        y, last = delta_rule(*parts, torch.ones(1, j - i, dtype=torch.int32), initial_state[n : n + 1], backend="reference")
        outputs.append(y)
        states.append(last)
    return torch.cat(outputs, dim=1), torch.cat(states)


def chunk_delta_rule(q, k, v, beta, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    return chunk_gated_delta_rule(q, k, v, None, beta, scale, initial_state, output_final_state, cu_seqlens)


MODULES = {
    "flash_attn": {"flash_attn_func": flash_attn_func, "flash_attn_varlen_func": flash_attn_varlen_func},
    "mamba_ssm": {},
    "mamba_ssm.ops": {},
    "mamba_ssm.ops.triton": {},
    "mamba_ssm.ops.triton.ssd_combined": {"mamba_chunk_scan_combined": mamba_chunk_scan_combined},
    "mamba_ssm.ops.selective_scan_interface": {"selective_scan_fn": selective_scan_fn, "selective_scan_cuda": object()},
    "causal_conv1d": {"causal_conv1d_fn": causal_conv1d_fn},
    "fla": {},
    "fla.ops": {},
    "fla.ops.delta_rule": {"chunk_delta_rule": chunk_delta_rule},
    "fla.ops.gated_delta_rule": {"chunk_gated_delta_rule": chunk_gated_delta_rule},
}


def forget():
    dispatch._exists.cache_clear()
    dispatch._import_error.cache_clear()


@pytest.fixture
def packages(monkeypatch):
    """The stand-ins as installed packages, whose device is the CPU."""
    for name, functions in MODULES.items():
        module = types.ModuleType(name)
        module.__dict__.update(functions, __spec__=importlib.machinery.ModuleSpec(name, None), __path__=[])
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(dispatch, "PACKAGE_DEVICE", "cpu")
    forget()
    seen.clear()
    yield
    forget()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def agree(function, tensors, package, **options):
    """Values and gradients of the package, as `auto` finds it, are those of the reference."""
    tensors = {k: None if x is None else x.requires_grad_() for k, x in tensors.items()}
    options |= {k: x for k, x in tensors.items() if x is None}
    tensors = {k: x for k, x in tensors.items() if x is not None}
    wanted = with_gradients(function, tensors, **options, backend="reference")
    assert disagreements(with_gradients(function, tensors, **options, backend=package), wanted, 1e-2) == []


def heads(t, length, channels=16, dtype=BF16):
    shapes = {"q_bhtk": (2, t, 4, channels), "k_bglk": (2, length, 2, channels), "v_bglk": (2, length, 2, channels)}
    return {k: normal(*s).to(dtype).transpose(1, 2) for k, s in shapes.items()}


@pytest.mark.parametrize(
    ("given", "window"),
    [
        ({"causal": True, "scale": 0.3}, (-1, -1)),
        ({"causal": True, "window": 5, "softcap": 2.0}, (4, 0)),
        ({"causal": False, "window": 5, "slopes_h": torch.tensor([0.5, 0.1, 0.02, 0.3])}, (4, -1)),
    ],
)
@pytest.mark.parametrize("t", [21, 3])
def test_flash_attn(given, window, t, packages):
    agree(attention, heads(t, 21), "flash-attn", **given)
    assert {call["window_size"] for call in seen} == {window} and seen[-1]["softmax_scale"] == given.get("scale", 0.25)


@pytest.mark.parametrize("layout", DOCUMENTS)
def test_flash_attn_goes_through_documents_one_after_the_other(layout, packages):
    document = torch.tensor(DOCUMENTS[layout])
    agree(attention, heads(21, 21), "flash-attn", causal=True, document_bt=document)
    assert len(seen) == sum(len(set(row) - {0}) for row in DOCUMENTS[layout])
    if layout != "padding between":
        agree(attention, heads(21, 21), "flash-attn", causal=True, window=4, document_bt=document)


CARRIED = {"fresh": None, "continued": torch.tensor([True, True]), "some continued": torch.tensor([True, False])}


@pytest.mark.parametrize("layout", DOCUMENTS)
@pytest.mark.parametrize("carried", CARRIED)
def test_mamba_ssm_in_chunks(layout, carried, packages):
    tensors = {"x_bthp": normal(2, 21, 4, 6).to(BF16), "step_bth": normal(2, 21, 4).exp() * 0.3, "decay_h": -normal(4).exp()}
    tensors |= {name: normal(2, 21, 2, 5, seed=i).to(BF16) for i, name in enumerate(("key_btgn", "query_btgn"))}
    tensors["state_bhpn"] = None if carried == "fresh" else normal(2, 4, 6, 5)
    agree(ssd, tensors, "mamba-ssm", document_bt=torch.tensor(DOCUMENTS[layout]), continues=CARRIED[carried])
    assert (seen[-1]["seq_idx"] is None) == (layout == "plain" and carried != "some continued")


@pytest.mark.parametrize("layout", DOCUMENTS)
@pytest.mark.parametrize("carried", CARRIED)
@pytest.mark.parametrize("gated", [False, True])
def test_flash_linear_attention(layout, carried, gated, packages):
    tensors = {"query_btgk": normal(2, 21, 2, 6).to(BF16), "key_btgk": F.normalize(normal(2, 21, 2, 6, seed=1), dim=-1).to(BF16)}
    tensors |= {"value_bthv": normal(2, 21, 4, 5).to(BF16), "beta_bth": normal(2, 21, 4).sigmoid()}
    tensors |= {"decay_bth": -normal(2, 21, 4).exp() if gated else None}
    tensors |= {"state_bhkv": None if carried == "fresh" else normal(2, 4, 6, 5)}
    agree(delta_rule, tensors, "flash-linear-attention", document_bt=torch.tensor(DOCUMENTS[layout]), continues=CARRIED[carried])
    assert seen[-1]["scale"] == 1.0


@pytest.mark.parametrize("gate", [False, True])
def test_mamba_ssm_scan(gate, packages):
    tensors = {"x_bti": normal(2, 9, 5), "step_bti": normal(2, 9, 5, seed=1), "step_bias_i": normal(5), "decay_in": -normal(5, 3).exp()}
    tensors |= {"key_btn": normal(2, 9, 3), "query_btn": normal(2, 9, 3, seed=1), "skip_i": normal(5, seed=1)}
    tensors["gate_bti"] = normal(2, 9, 5, seed=2) if gate else None
    document = torch.ones(2, 9, dtype=torch.int32)
    agree(lambda **given: selective_scan(**given)[0], tensors, "mamba-ssm", document_bt=document)
    y, last = selective_scan(**tensors, document_bt=document, backend="mamba-ssm")
    assert disagreements({"last": last}, {"last": selective_scan(**tensors, document_bt=document, backend="reference")[1]}, 1e-5) == []
    with pytest.raises(RecipeError, match="mamba-ssm gives no gradient for the last state"):
        (y.sum() + last.sum()).backward()


@pytest.mark.parametrize(("layout", "carried"), [("plain", "fresh"), ("plain", "continued"), ("packed", "fresh"), ("padded", "fresh")])
@pytest.mark.parametrize("bias", [False, True])
def test_causal_conv1d(layout, carried, bias, packages):
    tensors = {"x_btc": normal(2, 21, 8), "weight_ck": normal(8, 4), "bias_c": normal(8) if bias else None}
    tensors["state_bck"] = None if carried == "fresh" else normal(2, 8, 3)
    agree(causal_conv1d, tensors, "causal-conv1d", document_bt=torch.tensor(DOCUMENTS[layout]), activation="silu" if bias else None)


ONES = torch.ones(2, 21, dtype=torch.int32)
CONV = {"x_btc": normal(2, 21, 8), "weight_ck": normal(8, 4), "bias_c": None, "document_bt": ONES}
HELD = {"state_bck": normal(2, 8, 3)}
SCAN = {"x_bti": normal(2, 21, 4), "step_bti": normal(2, 21, 4), "step_bias_i": normal(4), "decay_in": -normal(4, 3).exp()}
SCAN |= {"key_btn": normal(2, 21, 3), "query_btn": normal(2, 21, 3), "skip_i": normal(4), "gate_bti": None, "document_bt": ONES}
RULE = {"query_btgk": normal(2, 21, 1, 4), "key_btgk": normal(2, 21, 1, 4), "value_bthv": normal(2, 21, 1, 4), "document_bt": ONES}
RULE |= {"beta_bth": normal(2, 21, 1), "decay_bth": None}
SSD = {"x_bthp": normal(2, 21, 1, 4), "step_bth": normal(2, 21, 1), "decay_h": -normal(1).exp(), "document_bt": ONES}
SSD |= {"key_btgn": normal(2, 21, 1, 3), "query_btgn": normal(2, 21, 1, 3)}
WIDE = {k: normal(2, 21, 1, 257).to(BF16) for k in ("query_btgk", "key_btgk", "value_bthv")}
PACKED, BETWEEN = torch.tensor(DOCUMENTS["packed"]), torch.tensor(DOCUMENTS["padding between"])


@pytest.mark.parametrize(
    ("function", "package", "given", "reason"),
    [
        (attention, "flash-attn", heads(21, 21, dtype=torch.float32), r"dtype float32 \(it takes bfloat16, float16\)"),
        (attention, "flash-attn", heads(21, 21, 264), "heads of 264 and 264 channels .it takes equal ones, at most 256"),
        (attention, "flash-attn", heads(21, 21) | {"v_bglk": normal(2, 2, 21, 24).to(BF16)}, "heads of 16 and 24 channels"),
        (attention, "flash-attn", heads(21, 21) | {"k_bglk": normal(2, 2, 21, 16)}, "differ in dtype"),
        (attention, "flash-attn", heads(21, 21) | {"mask": torch.ones(21, 21, dtype=torch.bool)}, "it takes no mask"),
        (attention, "flash-attn", heads(21, 21) | {"slopes_h": torch.ones(4).requires_grad_()}, "no gradient for slopes"),
        (attention, "flash-attn", heads(21, 21) | {"window": 4, "document_bt": BETWEEN}, "padding between tokens would change"),
        (attention, "flash-attn", heads(21, 21) | {"window": 4, "sinks": 1}, "it knows no sinks"),
        (attention, "flash-attn", heads(0, 21), "there are no tokens"),
        (ssd, "mamba-ssm", SSD, "float32 .its products shorten it to TF32"),
        (selective_scan, "mamba-ssm", SCAN | {"negative": True}, "no negative decays"),
        (selective_scan, "mamba-ssm", SCAN | {"state_bin": torch.zeros(2, 4, 3)}, "no carried state"),
        (selective_scan, "mamba-ssm", SCAN | {"document_bt": PACKED}, "rows of one document each"),
        (causal_conv1d, "causal-conv1d", CONV | {"weight_ck": normal(8, 5)}, r"5 taps \(it takes 2 to 4\)"),
        (causal_conv1d, "causal-conv1d", CONV | {"x_btc": normal(2, 21, 9), "weight_ck": normal(9, 4)}, "9 channels in rows 9 apart"),
        (causal_conv1d, "causal-conv1d", CONV | HELD | {"document_bt": PACKED}, "no carried inputs beside documents"),
        (causal_conv1d, "causal-conv1d", CONV | {"document_bt": BETWEEN}, "padding at the end alone"),
        (causal_conv1d, "causal-conv1d", CONV | HELD | {"continues": CARRIED["some continued"]}, "all rows or for none"),
        (delta_rule, "flash-linear-attention", RULE, "float32 .it takes bfloat16 and float16"),
        (delta_rule, "flash-linear-attention", RULE | WIDE, "keys of 257 channels"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_a_package_was_not_made_for_is_refused(function, package, given, reason, packages):
    more = {"causal": True} if function is attention else {}
    with pytest.raises(RecipeError, match=f"back end '{package}' cannot serve .*: .*{reason}"):
        function(**given, **more, backend=package)


def test_auto_takes_a_package_before_triton_and_refused_calls_go_on_to_the_next(packages):
    q, k, v = heads(21, 21).values()
    rule = Rule(True, 5, 0, 0.25, None)
    arguments = [q, k, v, None, None, rule, None]
    assert choose("attention", "auto", *arguments) == "flash-attn"
    arguments[3] = torch.ones(1, 1, 21, 21, dtype=torch.bool)
    assert choose("attention", "auto", *arguments) in ("triton", "native", "torch")
    with forced("reference"):
        assert choose("attention", "auto", q, k, v, None, None, rule, None) == "reference"


def test_a_package_that_is_absent_on_another_device_or_broken_says_so(packages, monkeypatch, caplog):
    given = heads(21, 21) | {"causal": True, "backend": "flash-attn"}
    monkeypatch.setattr(dispatch, "PACKAGE_DEVICE", "cuda")
    with pytest.raises(RecipeError, match="a tensor is on cpu, not on a CUDA device"):
        attention(**given)
    monkeypatch.setattr(dispatch, "PACKAGE_DEVICE", "cpu")

    def broken(name, *more):
        raise ImportError("undefined symbol")

    monkeypatch.setattr(importlib, "import_module", broken)
    forget()
    for _ in range(2):
        with pytest.raises(RecipeError, match="the package does not import: undefined symbol"):
            attention(**given)
    assert caplog.text.count("installed but does not import") == 1
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    forget()
    with pytest.raises(RecipeError, match="the package is not installed"):
        attention(**given)
