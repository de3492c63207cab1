"""Softmax attention on a GPU: one program a block of queries of a head, over the blocks of keys that they can see.

The softmax runs along (FlashAttention-2, arXiv:2307.08691): a maximum, a sum and the weighted values so far. Of the forward pass the output
and the log of each sum are kept; the backward pass computes the scores again, once for the gradient of the queries and once, block of keys
by block of keys, for those of keys and values, which go through the heads that share them. Nothing is summed by several programs, so the
same inputs give the same bits where the blocks are the same. Scores are in units of log 2, whose power is one instruction.

Documents of packed rows are ranges of keys: blocks outside of all ranges of a program are not visited.

Axes: b rows   h query heads   g key and value heads   t queries   l keys   k channels
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmlm.kernels.attention.reference import Rule, visible_pairs
from mmlm.kernels.documents import documents
from mmlm.kernels.programs import operands, product, put_rows, rows, tuned

_OF_QUERIES = (
    {"BM": 64, "BN": 32, "num_warps": 4, "num_stages": 2},
    {"BM": 64, "BN": 64, "num_warps": 4, "num_stages": 3},
    {"BM": 128, "BN": 64, "num_warps": 4, "num_stages": 3},
    {"BM": 128, "BN": 64, "num_warps": 8, "num_stages": 2},
    {"BM": 32, "BN": 32, "num_warps": 2, "num_stages": 2},
)
_OF_KEYS = (
    {"BM": 32, "BN": 64, "num_warps": 4, "num_stages": 2},
    {"BM": 64, "BN": 64, "num_warps": 4, "num_stages": 2},
    {"BM": 64, "BN": 64, "num_warps": 8, "num_stages": 2},
    {"BM": 64, "BN": 128, "num_warps": 8, "num_stages": 2},
    {"BM": 32, "BN": 32, "num_warps": 2, "num_stages": 2},
)
_KEY = ["K", "V", "CAUSAL", "DOT"]
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _scores(queries, keys, i, j, scale, cap, slope, offset, DOT: tl.constexpr, CAPPED: tl.constexpr, SLOPED: tl.constexpr):
    """Scores times log2(e), capped and biased by distance, and the slope of the cap."""
    z = product(queries, tl.trans(keys), DOT)
    steepness = 1.0
    if CAPPED:
        tanh = 1.0 - 2.0 / (tl.exp(z * (2.0 * scale / cap)) + 1.0)
        steepness = 1.0 - tanh * tanh
        z = tanh * (cap * LOG2_E)
    else:
        z = z * (scale * LOG2_E)
    if SLOPED:
        z -= slope * tl.abs(i[:, None] + offset - j[None, :]).to(tl.float32)
    return z, steepness


@triton.jit
def _seen(
    i, j, begin, end, end_ptr, mask_ptr, mask_t, mask_l, T, L, offset, window,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, DOCUMENTS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Whether query i sees key j."""
    seen = (i < T)[:, None] & (j < L)[None, :]
    distance = i[:, None] + offset - j[None, :]
    if CAUSAL:
        seen &= distance >= 0
    if WINDOWED:
        seen &= distance < window
    if DOCUMENTS:
        real = tl.load(end_ptr + j, mask=j < L, other=0) > 0
        seen &= (j[None, :] >= begin[:, None]) & (j[None, :] < end[:, None]) & real[None, :]
    if MASKED:
        seen &= tl.load(mask_ptr + i[:, None] * mask_t + j[None, :] * mask_l, mask=seen, other=0) != 0
    return seen


@triton.jit
def _block_of_queries(
    begin_ptr, end_ptr, T, L, offset, window, H, BM: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, DOCUMENTS: tl.constexpr
):
    """Row and head of a program, its queries, and the keys they can see: all from low to high, each from its begin to its end."""
    blocks = tl.cdiv(T, BM)
    head = tl.program_id(0).to(tl.int64) // blocks
    first = (blocks - 1 - tl.program_id(0) % blocks) * BM  # the last queries see the most and begin first
    b = head // H
    i = first + tl.arange(0, BM).to(tl.int64)
    low, high = tl.zeros((), tl.int64), tl.zeros((), tl.int64) + L
    begin, end = i, i
    if CAUSAL:
        high = tl.minimum(high, first + BM + offset)
    if WINDOWED:
        low = tl.maximum(low, first + offset - window + 1)
    if DOCUMENTS:
        begin, end = tl.load(begin_ptr + b * T + i, mask=i < T, other=T), tl.load(end_ptr + b * T + i, mask=i < T, other=0)
        low, high = tl.maximum(low, tl.min(begin, 0)), tl.minimum(high, tl.max(end, 0))
    return head, b, head % H, i, low, high, begin, end


@tuned(*_OF_QUERIES, key=_KEY)
@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, mask_ptr, slopes_ptr, begin_ptr, end_ptr, y_ptr, sums_ptr,
    q_b, q_h, q_t, k_b, k_g, k_l, v_b, v_g, v_l, mask_b, mask_h, mask_t, mask_l,
    H, G, T, L, offset, window, scale, cap,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DOT: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr, SLOPED: tl.constexpr,
    DOCUMENTS: tl.constexpr, MASKED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    head, b, h, i, low, high, begin, end = _block_of_queries(begin_ptr, end_ptr, T, L, offset, window, H, BM, CAUSAL, WINDOWED, DOCUMENTS)
    g = h // (H // G)
    inside, k, v = i < T, tl.arange(0, BK), tl.arange(0, BV)
    queries = rows(q_ptr + b * q_b + h * q_h, i, inside, k, K, q_t)
    slope = 0.0
    if SLOPED:
        slope = tl.load(slopes_ptr + h) * LOG2_E
    best, total = tl.full((BM,), float("-inf"), tl.float32), tl.zeros((BM,), tl.float32)
    values = tl.zeros((BM, BV), tl.float32)
    for start in range(low // BN * BN, high, BN):
        j = start + tl.arange(0, BN).to(tl.int64)
        keys = rows(k_ptr + b * k_b + g * k_g, j, j < L, k, K, k_l)
        z, _ = _scores(queries, keys, i, j, scale, cap, slope, offset, DOT, CAPPED, SLOPED)
        seen = _seen(
            i, j, begin, end, end_ptr + b * T if DOCUMENTS else end_ptr, mask_ptr + b * mask_b + h * mask_h if MASKED else mask_ptr,
            mask_t, mask_l, T, L, offset, window, CAUSAL, WINDOWED, DOCUMENTS, MASKED,
        )  # fmt: skip
        z = tl.where(seen, z, float("-inf"))
        higher = tl.maximum(best, tl.max(z, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        p, shrink = tl.exp2(z - base[:, None]), tl.exp2(best - base)
        total = total * shrink + tl.sum(p, 1)
        values = values * shrink[:, None] + product(p, rows(v_ptr + b * v_b + g * v_g, j, j < L, v, V, v_l), DOT)
        best = higher
    none = total == 0.0
    put_rows(y_ptr, values / tl.where(none, 1.0, total)[:, None], head * T + i, inside, v, V, V)
    tl.store(sums_ptr + head * T + i, tl.where(none, float("inf"), best + tl.log2(tl.where(none, 1.0, total))), mask=inside)


@tuned(*_OF_QUERIES, key=_KEY)
@triton.jit
def _query_gradients(
    q_ptr, k_ptr, v_ptr, mask_ptr, slopes_ptr, begin_ptr, end_ptr, y_ptr, sums_ptr, dy_ptr, dq_ptr, pull_ptr,
    q_b, q_h, q_t, k_b, k_g, k_l, v_b, v_g, v_l, mask_b, mask_h, mask_t, mask_l,
    H, G, T, L, offset, window, scale, cap,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DOT: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr, SLOPED: tl.constexpr,
    DOCUMENTS: tl.constexpr, MASKED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dq, and of each query the sum of y dy, which is that of p dp."""
    head, b, h, i, low, high, begin, end = _block_of_queries(begin_ptr, end_ptr, T, L, offset, window, H, BM, CAUSAL, WINDOWED, DOCUMENTS)
    g = h // (H // G)
    inside, k, v = i < T, tl.arange(0, BK), tl.arange(0, BV)
    queries = rows(q_ptr + b * q_b + h * q_h, i, inside, k, K, q_t)
    slope = 0.0
    if SLOPED:
        slope = tl.load(slopes_ptr + h) * LOG2_E
    dy = rows(dy_ptr, head * T + i, inside, v, V, V)
    pull = tl.sum(rows(y_ptr, head * T + i, inside, v, V, V).to(tl.float32) * dy, 1)
    tl.store(pull_ptr + head * T + i, pull, mask=inside)
    sums = tl.load(sums_ptr + head * T + i, mask=inside, other=float("inf"))
    dq = tl.zeros((BM, BK), tl.float32)
    for start in range(low // BN * BN, high, BN):
        j = start + tl.arange(0, BN).to(tl.int64)
        keys = rows(k_ptr + b * k_b + g * k_g, j, j < L, k, K, k_l)
        z, steepness = _scores(queries, keys, i, j, scale, cap, slope, offset, DOT, CAPPED, SLOPED)
        seen = _seen(
            i, j, begin, end, end_ptr + b * T if DOCUMENTS else end_ptr, mask_ptr + b * mask_b + h * mask_h if MASKED else mask_ptr,
            mask_t, mask_l, T, L, offset, window, CAUSAL, WINDOWED, DOCUMENTS, MASKED,
        )  # fmt: skip
        p = tl.exp2(tl.where(seen, z, float("-inf")) - sums[:, None])
        dp = product(dy, tl.trans(rows(v_ptr + b * v_b + g * v_g, j, j < L, v, V, v_l)), DOT)
        dq += product(p * (dp - pull[:, None]) * steepness, keys, DOT)
    put_rows(dq_ptr, dq * scale, head * T + i, inside, k, K, K)


@tuned(*_OF_KEYS, key=_KEY)
@triton.jit
def _key_gradients(
    q_ptr, k_ptr, v_ptr, mask_ptr, slopes_ptr, begin_ptr, end_ptr, sums_ptr, dy_ptr, pull_ptr, dk_ptr, dv_ptr,
    q_b, q_h, q_t, k_b, k_g, k_l, v_b, v_g, v_l, mask_b, mask_h, mask_t, mask_l,
    H, G, T, L, offset, window, scale, cap,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DOT: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr, SLOPED: tl.constexpr,
    DOCUMENTS: tl.constexpr, MASKED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dk and dv of a block of keys, from all heads that share them."""
    blocks = tl.cdiv(L, BN)
    group = tl.program_id(0).to(tl.int64) // blocks
    first = tl.program_id(0) % blocks * BN
    b, g = group // G, group % G
    j = first + tl.arange(0, BN).to(tl.int64)
    inside, k, v = j < L, tl.arange(0, BK), tl.arange(0, BV)
    keys = rows(k_ptr + b * k_b + g * k_g, j, inside, k, K, k_l)
    values = rows(v_ptr + b * v_b + g * v_g, j, inside, v, V, v_l)
    low, high = tl.zeros((), tl.int64), tl.zeros((), tl.int64) + T
    if CAUSAL:
        low = tl.maximum(low, first - offset)
    if WINDOWED:
        high = tl.minimum(high, first + BN - 1 + window - offset)
    if DOCUMENTS:  # queries see the keys of their document, so keys are seen by its queries
        low = tl.maximum(low, tl.min(tl.load(begin_ptr + b * T + j, mask=inside, other=T), 0))
        high = tl.minimum(high, tl.max(tl.load(end_ptr + b * T + j, mask=inside, other=0), 0))
    dk, dv = tl.zeros((BN, BK), tl.float32), tl.zeros((BN, BV), tl.float32)
    for h in range(g * (H // G), (g + 1) * (H // G)):
        head = b * H + h
        slope = 0.0
        if SLOPED:
            slope = tl.load(slopes_ptr + h) * LOG2_E
        for start in range(low // BM * BM, high, BM):
            i = start + tl.arange(0, BM).to(tl.int64)
            queries = rows(q_ptr + b * q_b + h * q_h, i, i < T, k, K, q_t)
            dy = rows(dy_ptr, head * T + i, i < T, v, V, V)
            pull = tl.load(pull_ptr + head * T + i, mask=i < T, other=0.0)
            sums = tl.load(sums_ptr + head * T + i, mask=i < T, other=float("inf"))
            begin, end = i, i
            if DOCUMENTS:
                begin, end = tl.load(begin_ptr + b * T + i, mask=i < T, other=T), tl.load(end_ptr + b * T + i, mask=i < T, other=0)
            z, steepness = _scores(queries, keys, i, j, scale, cap, slope, offset, DOT, CAPPED, SLOPED)
            seen = _seen(
                i, j, begin, end, end_ptr + b * T if DOCUMENTS else end_ptr, mask_ptr + b * mask_b + h * mask_h if MASKED else mask_ptr,
                mask_t, mask_l, T, L, offset, window, CAUSAL, WINDOWED, DOCUMENTS, MASKED,
            )  # fmt: skip
            p = tl.exp2(tl.where(seen, z, float("-inf")) - sums[:, None])
            dv += product(tl.trans(p), dy, DOT)
            d = p * (product(dy, tl.trans(values), DOT) - pull[:, None]) * steepness
            dk += product(tl.trans(d), queries, DOT)
    put_rows(dk_ptr, dk * scale, group * L + j, inside, k, K, K)
    put_rows(dv_ptr, dv, group * L + j, inside, v, V, V)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        slopes: Tensor | None,
        begin: Tensor | None,
        end: Tensor | None,
        rule: Rule,
    ) -> Tensor:
        b, heads, t, _ = q.shape
        y, sums = q.new_empty(b, heads, t, v.shape[3]), q.new_empty(b, heads, t, dtype=torch.float32)
        given = (q, k, v, mask, slopes, begin, end)
        numbers, options = _launch(given, rule)
        _forward[lambda c: (b * heads * triton.cdiv(t, c["BM"]),)](*given, y, sums, *numbers, **options)
        ctx.save_for_backward(*given, y, sums)
        ctx.rule = rule
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        *given, y, sums = ctx.saved_tensors
        q, k, v = given[:3]
        (b, heads, t, _), (groups, length) = q.shape, k.shape[1:3]
        dy, pull = dy.contiguous(), torch.empty_like(sums)
        dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
        numbers, options = _launch(tuple(given), ctx.rule)
        _query_gradients[lambda c: (b * heads * triton.cdiv(t, c["BM"]),)](*given, y, sums, dy, dq, pull, *numbers, **options)
        _key_gradients[lambda c: (b * groups * triton.cdiv(length, c["BN"]),)](*given, sums, dy, pull, dk, dv, *numbers, **options)
        return dq, dk, dv, None, None, None, None, None


def _launch(given: tuple[Tensor | None, ...], rule: Rule) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Strides, sizes and constants of all three programs."""
    q, k, v, mask, slopes, begin, _ = given
    assert q is not None and k is not None and v is not None
    (_, heads, t, channels), (groups, length, width) = q.shape, v.shape[1:]
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *((0,) * 4 if mask is None else mask.stride()))
    numbers = (*strides, heads, groups, t, length, length - t, rule.window or 0, float(rule.scale), rule.softcap or 0.0)
    options = {"K": channels, "V": width, "DOT": operands(q.dtype)}
    options |= {name: max(16, triton.next_power_of_2(size)) for name, size in (("BK", channels), ("BV", width))}
    options |= {"CAUSAL": rule.causal, "WINDOWED": rule.window is not None, "CAPPED": rule.softcap is not None}
    options |= {"SLOPED": slopes is not None, "DOCUMENTS": begin is not None, "MASKED": mask is not None}
    return numbers, options


def attention_triton(
    q_bhtk: Tensor,
    k_bglk: Tensor,
    v_bglk: Tensor,
    mask: Tensor | None,
    slopes_h: Tensor | None,
    rule: Rule,
    document_bt: Tensor | None = None,
) -> Tensor:
    """Queries, keys and values are read as they lie, so transposed views are not copied. A window with sinks becomes a mask."""
    b, heads, t, _ = q_bhtk.shape
    length = k_bglk.shape[2]
    if q_bhtk.numel() * v_bglk.numel() == 0:
        return q_bhtk.new_zeros(b, heads, t, v_bglk.shape[3])
    if rule.window is not None and rule.sinks:
        pairs = visible_pairs(t, length, rule, q_bhtk.device)
        mask, rule = pairs if mask is None else mask & pairs, rule._replace(window=None, sinks=0)
    begin = end = None
    if document_bt is not None:
        begin, end = documents(document_bt).ranges
    return _Attention.apply(
        *(x if x.stride(-1) == 1 else x.contiguous() for x in (q_bhtk, k_bglk, v_bglk)),
        None if mask is None else mask.expand(b, heads, t, length).view(torch.uint8),
        None if slopes_h is None else slopes_h.detach().float().contiguous(),
        begin,
        end,
        rule,
    )
