"""How fast the kernels are beside their plain forms: ratios of CPU time on one thread, median of interleaved rounds, behind a parity check.

The bars are the goals divided by a margin of 1.3 for the noise of a shared machine.
"""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F

from mmlm.kernels.attention.fast import attention
from mmlm.kernels.conv1d.fast import causal_conv1d
from mmlm.kernels.cross_entropy.fast import linear_cross_entropy
from mmlm.kernels.dispatch import available
from mmlm.kernels.parity import disagreements, with_gradients
from mmlm.kernels.rms_norm.fast import rms_norm
from mmlm.kernels.rope.fast import rope
from mmlm.kernels.ssd.fast import ssd
from mmlm.kernels.swiglu.fast import swiglu
from tests.bench.measure import MARGIN, compare, peak_mb

pytestmark = pytest.mark.bench


def normal(*shape, dtype=torch.float32, scale=1.0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * scale
    return x.to(dtype).requires_grad_()


def step(function, tensors):
    """Forward and backward of a function, as a call without arguments."""
    inputs = [x for x in tensors.values() if x.requires_grad]
    grads = []

    def run():
        outputs = function(**tensors)
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else [y for y in outputs if y.requires_grad]
        if not grads:
            grads.extend(torch.ones_like(y) for y in outputs)
        torch.autograd.grad(outputs, inputs, grads)

    return run


def show(what, times, peer, goal=None):
    """Print a row and hold the goal, for the best of our back ends."""
    ours = {name: peer_ms / ms for name, ms in times.items() if name != peer and (peer_ms := times[peer])}
    row = "   ".join(f"{name} {ms:.2f} ms" + (f" ({ours[name]:.2f}x)" if name in ours else "") for name, ms in times.items())
    print(f"\n{what}: {row}" + (f"   goal {goal}x" if goal else ""))
    if goal and "native" in ours:
        assert ours["native"] >= goal / MARGIN, f"{what}: {ours['native']:.2f}x {peer}, goal {goal}x"


def parity(op, tensors, tolerance, **options):
    exact = with_gradients(op, tensors, backend="reference", **options)
    for backend in available(NAMES[op], but="reference"):
        assert disagreements(with_gradients(op, tensors, backend=backend, **options), exact, tolerance) == [], backend


def all_forms(op, tensors, peer, **options):
    forms = {"plain": step(peer, tensors)}
    for backend in available(NAMES[op], but="reference"):
        forms[backend] = step(functools.partial(op, **options, backend=backend), tensors)
    return forms


NAMES = {
    attention: "attention",
    rms_norm: "rms_norm",
    swiglu: "swiglu",
    rope: "rope",
    ssd: "ssd",
    causal_conv1d: "causal_conv1d",
    linear_cross_entropy: "linear_cross_entropy",
}
DTYPES = [torch.float32, torch.bfloat16]


def tolerance(dtype):
    return 1e-5 if dtype == torch.float32 else 1e-2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rms_norm(dtype):
    tensors = {"x": normal(1024, 768, dtype=dtype), "weight_d": normal(768, dtype=dtype)}
    parity(rms_norm, tensors, tolerance(dtype))

    def plain(x, weight_d):  # as transformers writes it
        s = x.float()
        return weight_d * (s * torch.rsqrt(s.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)

    times = compare(all_forms(rms_norm, tensors, plain))
    show(f"RMSNorm 1024 x 768, {dtype}", times, "plain", {torch.float32: 5, torch.bfloat16: 8}[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_swiglu(dtype):
    tensors = {"gate_up": normal(1024, 4096, dtype=dtype)}
    parity(swiglu, tensors, tolerance(dtype))

    def plain(gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    times = compare(all_forms(swiglu, tensors, plain))
    show(f"SwiGLU 1024 x (2 x 2048), {dtype}", times, "plain", {torch.float32: 2.5, torch.bfloat16: 3}[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rope(dtype):
    angle = normal(2, 512, 32).detach()
    tensors = {"q_bthk": normal(2, 512, 12, 64, dtype=dtype), "k_btgk": normal(2, 512, 4, 64, dtype=dtype)}
    tensors |= {"cos_btj": angle.cos(), "sin_btj": angle.sin()}
    parity(rope, tensors, tolerance(dtype))

    def plain(q_bthk, k_btgk, cos_btj, sin_btj):
        cos, sin = (torch.cat([part, part], -1).unsqueeze(2).to(q_bthk.dtype) for part in (cos_btj, sin_btj))

        def half(x):
            return torch.cat([-x[..., 32:], x[..., :32]], -1)

        return q_bthk * cos + half(q_bthk) * sin, k_btgk * cos + half(k_btgk) * sin

    show(f"rotary positions 2 x 512 x (12 + 4) x 64, {dtype}", compare(all_forms(rope, tensors, plain)), "plain")


def test_cross_entropy_of_fifty_thousand_words():
    g = torch.Generator().manual_seed(0)
    x, weight = normal(1024, 768), normal(50304, 768, scale=0.02)
    target = torch.randint(0, 50304, (1024,), generator=g)
    gradients_mb = (x.nbytes + weight.nbytes) / 2**20

    def full(dtype, x_nd, weight_vd):
        logits = F.linear(x_nd.to(dtype), weight_vd.to(dtype))
        return F.cross_entropy(logits.float(), target, reduction="sum")

    def ours(backend, dtype, x_nd, weight_vd):
        return linear_cross_entropy(x_nd, weight_vd, target, product_dtype=dtype, backend=backend)

    tensors = {"x_nd": x, "weight_vd": weight}
    half, single = torch.bfloat16, torch.float32
    forms = {"full float32": functools.partial(full, single), "full bfloat16": functools.partial(full, half)}
    for backend in available("linear_cross_entropy", but="reference"):
        forms |= {f"{backend} float32": functools.partial(ours, backend, single), backend: functools.partial(ours, backend, half)}
    exact = with_gradients(forms["full float32"], tensors)
    for name in forms.keys() - {"full float32", "full bfloat16"}:
        limit = tolerance(single if "32" in name else half)
        assert disagreements(with_gradients(forms[name], tensors), exact, limit) == [], name
    del exact
    contestants = {name: step(function, tensors) for name, function in forms.items()}
    times = compare(contestants, rounds=3)
    memory = {name: peak_mb(run) - gradients_mb for name, run in contestants.items()}
    show("cross-entropy 1024 x 768 -> 50304", times, "full float32", 2.4)
    print("   peak memory beyond the gradients: " + ", ".join(f"{name} {mb:.0f} MB" for name, mb in memory.items()))
    best = "native" if "native" in memory else "torch"
    assert memory[best] <= memory["full float32"] / 6
    assert times["full bfloat16"] / times[best] >= 1.2 / MARGIN


def test_ssd():
    heads, p, n = 8, 64, 64
    for length in (256, 1024, 4096):
        tensors = {
            "x_bthp": normal(1, length, heads, p),
            "step_bth": normal(1, length, heads).detach().exp().mul(0.1).requires_grad_(),
            "decay_h": normal(heads).detach().exp().neg().requires_grad_(),
            "key_btgn": normal(1, length, 1, n),
            "query_btgn": normal(1, length, 1, n),
        }
        document = torch.ones(1, length, dtype=torch.int32)
        if length == 256:
            parity(ssd, tensors, 1e-5, document_bt=document)
        backends = available("ssd", but="reference")
        runs = {b: step(functools.partial(ssd, document_bt=document, backend=b), tensors) for b in backends}
        show(f"Mamba-2 recurrence 1 x {length}, 8 heads of 64, state 64, both ways", compare(runs, rounds=3), "torch", 2)
        fixed = {k: v.detach() for k, v in tensors.items()}
        runs = {b: functools.partial(ssd, **fixed, document_bt=document, backend=b) for b in backends}
        show(f"Mamba-2 recurrence 1 x {length}, forward", compare(runs, rounds=3), "torch", 3)


def test_causal_conv1d():
    tensors = {"x_btc": normal(1, 1024, 640), "weight_ck": normal(640, 4), "bias_c": normal(640)}
    document = torch.ones(1, 1024, dtype=torch.int32)
    parity(causal_conv1d, tensors, 1e-5, document_bt=document)

    def plain(x_btc, weight_ck, bias_c):
        x_bct = F.conv1d(F.pad(x_btc.transpose(1, 2), (3, 0)), weight_ck[:, None], bias_c, groups=640)
        return F.silu(x_bct).transpose(1, 2)

    times = compare(all_forms(causal_conv1d, tensors, plain, document_bt=document))
    show("causal convolution 1024 x 640, 4 taps, SiLU, both ways", times, "plain", 3.5)


@pytest.mark.parametrize(("b", "h", "t", "goal"), [(16, 5, 128, 3), (2, 5, 512, 3), (1, 12, 2048, 1.5)], ids=str)
def test_attention(b, h, t, goal):
    q, k, v = (torch.randn(b, t, h, 64, generator=torch.Generator().manual_seed(i)).transpose(1, 2) for i in range(3))
    tensors = {"q_bhtk": q, "k_bglk": k, "v_bglk": v}
    tensors = {name: x.to(torch.bfloat16).requires_grad_() for name, x in tensors.items()}
    parity(attention, tensors, 1e-2, causal=True)

    def plain(q_bhtk, k_bglk, v_bglk):
        return F.scaled_dot_product_attention(q_bhtk, k_bglk, v_bglk, is_causal=True)

    times = compare(all_forms(attention, tensors, plain, causal=True), rounds=3)
    show(f"causal attention {b} x {h} x {t} x 64, bfloat16, both ways", times, "plain", goal)
