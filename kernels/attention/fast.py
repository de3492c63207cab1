"""Which form of softmax attention serves: blocks in C++ on a CPU (fast.cpp), else torch's fused form or blocks of its matrix products.

torch's backward pass in bfloat16 is slow on a CPU (tests/bench/test_kernels.py) and its fused form knows no soft caps: without the compiled
form, blocks serve these. Where scores are few, each product of such blocks costs more than its arithmetic, and the fused form in float32 is
the quickest.

Axes: b rows   h query heads   g key and value heads   t queries   l keys   k channels
"""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.base.errors import RecipeError
from mmlm.kernels import native
from mmlm.kernels.attention.blocks import Rule, attention_in_blocks
from mmlm.kernels.attention.reference import attention_reference, distance_bias, visible_pairs
from mmlm.kernels.dispatch import pointers, register, run
from mmlm.kernels.native import address, letters

FEW_SCORES = 1 << 17  # below, one fused call in float32 costs less than several products in bfloat16


def attention(
    q_bhtk: Tensor,
    k_bglk: Tensor,
    v_bglk: Tensor,
    *,
    causal: bool,
    mask: Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    slopes_h: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """softmax(q k^T scale) v [b, h, t, k] in the dtype given; heads h share the g key and value heads in order (h / g each).

    causal: a query sees the keys up to its own place, queries being the last t of the l tokens. window: it sees the last `window` of them.
    mask: bool [b or 1, h or 1, t, l], true where a key may be seen, besides both. scale: default 1 / sqrt(k). softcap: scores become
    cap * tanh(score / cap). slopes_h: slope * |distance| is taken from a head's scores (ALiBi). A query that sees no key gets zeros.
    Raises RecipeError where shapes do not fit or the back end asked for cannot serve.
    """
    heads, groups = q_bhtk.shape[1], k_bglk.shape[1]
    if heads % groups:
        raise RecipeError(f"attention: {heads} query heads cannot share {groups} key heads evenly.")
    if causal and q_bhtk.shape[2] > k_bglk.shape[2]:
        raise RecipeError(f"attention: {q_bhtk.shape[2]} causal queries need as many keys at least, but there are {k_bglk.shape[2]}.")
    if mask is not None:
        mask = mask.reshape((1,) * (4 - mask.dim()) + mask.shape)
    if scale is None:
        scale = 1 / math.sqrt(q_bhtk.shape[-1])
    arguments = (q_bhtk, k_bglk, v_bglk, mask, causal, window, scale, softcap, slopes_h)
    return run("attention", backend, (q_bhtk, k_bglk, v_bglk, mask, slopes_h), *arguments)


def attention_torch(
    q_bhtk: Tensor,
    k_bglk: Tensor,
    v_bglk: Tensor,
    mask: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
    softcap: float | None,
    slopes_h: Tensor | None = None,
) -> Tensor:
    """Blocks of products for soft caps and for training on short bfloat16 rows, else torch's fused form."""
    t, length = q_bhtk.shape[2], k_bglk.shape[2]
    if slopes_h is not None and softcap is not None:
        return attention_reference(q_bhtk, k_bglk, v_bglk, mask, causal, window, scale, softcap, slopes_h)
    trains, few = _trains_in_bfloat16(q_bhtk, k_bglk, v_bglk), _are_few(q_bhtk, k_bglk)
    if softcap is not None or (t <= 256 and trains and not few and slopes_h is None):
        return attention_in_blocks(q_bhtk, k_bglk, v_bglk, mask, causal, window, scale, softcap)
    simple = mask is None and window is None and slopes_h is None and (not causal or t == length)
    if not simple:
        pairs = visible_pairs(t, length, causal, window, q_bhtk.device)
        mask = pairs if mask is None else mask & pairs
    dtype = q_bhtk.dtype
    if trains and few:
        q_bhtk, k_bglk, v_bglk = q_bhtk.float(), k_bglk.float(), v_bglk.float()
    seen = mask
    if slopes_h is not None and mask is not None:
        bias = distance_bias(slopes_h.to(q_bhtk.dtype), t, length)
        mask = torch.where(mask, bias, -torch.inf)
    y = F.scaled_dot_product_attention(
        q_bhtk, k_bglk, v_bglk, mask, is_causal=causal and simple, scale=scale, enable_gqa=q_bhtk.shape[1] != k_bglk.shape[1]
    ).to(dtype)
    return y if seen is None else torch.where(seen.any(-1, keepdim=True), y, 0)


def _trains_in_bfloat16(*qkv: Tensor) -> bool:
    """Whether a gradient is asked for, in bfloat16 on the CPU."""
    training = torch.is_grad_enabled() and any(x.requires_grad for x in qkv)
    return training and all(x.dtype == torch.bfloat16 and x.device.type == "cpu" for x in qkv)


def _are_few(q_bhtk: Tensor, k_bglk: Tensor) -> bool:
    return q_bhtk.shape[:3].numel() * k_bglk.shape[2] < FEW_SCORES


class _Heads(ctypes.Structure):
    _fields_ = [("data", native.ADDRESS), *((name, native.SIZE) for name in ("row", "token", "head"))]


class _Problem(ctypes.Structure):
    _fields_ = [
        *((name, _Heads) for name in ("q", "k", "v", "y", "dy", "dq", "dk", "dv")),
        *((name, native.ADDRESS) for name in ("sequences", "order", "mask", "slopes", "log_sum")),
        *((name, native.SIZE) for name in ("count", "heads", "groups", "channels", "values", "queries", "keys")),
        *((name, native.SIZE) for name in ("mask_row", "mask_head", "mask_key", "causal", "window", "sinks")),
        ("scale", native.REAL),
        ("cap", native.REAL),
    ]


_RUN = [native.ADDRESS, ctypes.c_int]
_library = native.Library(Path(__file__).parent / "fast.cpp", {f"{way}_{letter}": _RUN for way in ("forward", "backward") for letter in "fb"})


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_bhtk: Tensor, k_bglk: Tensor, v_bglk: Tensor, mask: Tensor | None, slopes_h: Tensor | None, rule: Rule
    ) -> Tensor:
        q, k, v = (_dense(x) for x in (q_bhtk, k_bglk, v_bglk))
        y = _like(q, v.shape[-1])
        log_sum = torch.empty(q.shape[:3], dtype=torch.float32)
        if mask is not None:  # in memory with the queries side by side
            mask = mask.expand(*mask.shape[:2], q.shape[2], k.shape[2]).mT.contiguous()
        _call("forward", rule, mask, slopes_h, log_sum, q=q, k=k, v=v, y=y)
        ctx.save_for_backward(q, k, v, y, log_sum, mask, slopes_h)
        ctx.rule = rule
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy_bhtk: Tensor) -> tuple[Any, ...]:
        q, k, v, y, log_sum, mask, slopes_h = ctx.saved_tensors
        dq, dk, dv = (_like(x, x.shape[-1]) for x in (q, k, v))
        _call("backward", ctx.rule, mask, slopes_h, log_sum, q=q, k=k, v=v, y=y, dy=_dense(dy_bhtk), dq=dq, dk=dk, dv=dv)
        return dq, dk, dv, None, None, None


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _like(x_bhtk: Tensor, channels: int) -> Tensor:
    """Memory [b, h, t, channels] that lies as [b, t, h, channels]: the projections beside attention take it without a copy."""
    b, h, t, _ = x_bhtk.shape
    return x_bhtk.new_empty(b, t, h, channels).transpose(1, 2)


def _call(way: str, rule: Rule, mask: Tensor | None, slopes_h: Tensor | None, log_sum: Tensor, **operands: Tensor) -> None:
    q, k, v = operands["q"], operands["k"], operands["v"]
    (b, h, t, channels), (_, groups, length, values) = q.shape, v.shape
    problem = _Problem(
        **{name: _Heads(address(x), x.stride(0), x.stride(2), x.stride(1)) for name, x in operands.items()},
        **{"mask": address(mask), "slopes": address(slopes_h), "log_sum": address(log_sum)},
        **{"count": b, "heads": h, "groups": groups, "channels": channels, "values": values, "queries": t, "keys": length},
        **{"causal": rule.causal, "window": rule.window or 0, "scale": rule.scale, "cap": rule.softcap or 0.0},
    )
    if mask is not None:
        problem.mask_row, problem.mask_head = (mask.stride(i) if mask.shape[i] > 1 else 0 for i in (0, 1))
        problem.mask_key = mask.stride(2)
    seconds = b * h * t * length * (channels + values) * (1e-11 if q.element_size() == 2 else 4e-11)
    getattr(_library(), f"{way}_{letters(q)}")(ctypes.addressof(problem), native.threads(seconds))


def _serves(*tensors: Tensor | None) -> str | None:
    if len({x.dtype for x in tensors[:3] if x is not None}) > 1:
        return "queries, keys and values differ in dtype"
    return pointers(*tensors[:4]) or _library.missing()


def attention_native(
    q_bhtk: Tensor,
    k_bglk: Tensor,
    v_bglk: Tensor,
    mask: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
    softcap: float | None,
    slopes_h: Tensor | None = None,
) -> Tensor:
    """Blocks in C++: AMX tiles for bfloat16 where there are any, vectors of floats elsewhere. The result lies as [b, t, h, k]."""
    slopes = None if slopes_h is None else slopes_h.detach().float().contiguous()
    return _Attention.apply(q_bhtk, k_bglk, v_bglk, mask, slopes, Rule(causal, window, scale, softcap))


register("attention", "reference", attention_reference)
register("attention", "torch", attention_torch)
register("attention", "native", attention_native, _serves)
