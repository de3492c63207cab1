"""Gated linear attention for GPUs in Triton: a program takes one head of a row in blocks of 16 tokens, a slice of the state in registers.

The equations of a block are those of `fast.py`. The factors between its tokens differ from channel to channel, so products of queries and
keys are summed one token of the block after the other; all else are matrix products. The backward pass goes once backwards in time with
the gradient of the state and once forwards with the state. The decay's gradient follows from the others: that of token t is that of token
t + 1 plus query dquery - key dkey, channel by channel, begun anew at each block from the product of state and gradient.

Axes: b rows   t tokens   h heads   k key channels   v value channels, in slices
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmlm.kernels.documents import documents
from mmlm.kernels.gla.reference import Gla
from mmlm.kernels.programs import operands, product, put_rows, rows
from mmlm.kernels.recurrence import in_rows, sums_to_the_end

BLOCK = 16  # tokens, the least that a matrix product takes


@triton.jit
def _block(decay_ptr, segment_ptr, b, of_token, start, T, k, K, BLOCK: tl.constexpr):
    """Running sums of decays, factors from the block's start, to its end and through it, and which tokens see which."""
    at = tl.arange(0, BLOCK)
    token = start + at
    segment = tl.load(segment_ptr + b * T + tl.minimum(token, T - 1))
    before = tl.load(segment_ptr + b * T + start - 1, mask=start > 0, other=0)
    last = tl.max(segment, 0)
    decay = rows(decay_ptr, of_token, token < T, k, K, K)
    sums, total = tl.cumsum(decay, 0), tl.sum(decay, 0)
    from_start = tl.where((segment == before)[:, None], tl.exp(sums), 0.0)
    to_end = tl.where((segment == last)[:, None], tl.exp(total[None, :] - sums), 0.0)
    through = tl.where(last == before, tl.exp(total), 0.0)
    visible = (at[:, None] >= at[None, :]) & (segment[:, None] == segment[None, :])
    return sums, from_start, to_end, through, visible


@triton.jit
def _row(x, at, i):
    return tl.sum(tl.where((at == i)[:, None], x, 0.0), 0)


@triton.jit
def _scores(queries, keys, sums, visible, BLOCK: tl.constexpr):
    """A_ij = sum over channels of query_i key_j exp(sums_i - sums_j)."""
    at = tl.arange(0, BLOCK)
    scores = tl.zeros((BLOCK, BLOCK), tl.float32)
    for j in range(BLOCK):
        factor = tl.exp(tl.minimum(sums - _row(sums, at, j)[None, :], 0.0))
        found = tl.sum(queries * factor * _row(keys, at, j)[None, :], 1)
        scores = tl.where((at == j)[None, :], found[:, None], scores)
    return tl.where(visible, scores, 0.0)


@triton.jit
def _forward(
    query_ptr, key_ptr, value_ptr, decay_ptr, segment_ptr, initial_ptr, y_ptr, last_ptr, T, H, K, W,
    DOT: tl.constexpr, BLOCK: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    b, h = tl.program_id(0).to(tl.int64) // H, tl.program_id(0).to(tl.int64) % H
    k, v = tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    in_state = (b * H + h) * K + k
    state = tl.zeros((BK, BV), tl.float32)
    if initial_ptr is not None:
        state = rows(initial_ptr, in_state, k < K, v, W, W)
    for start in range(0, T, BLOCK):
        token = start + tl.arange(0, BLOCK)
        inside, of_token = token < T, (b * T + token) * H + h
        queries = rows(query_ptr, of_token, inside, k, K, K).to(tl.float32)
        keys = rows(key_ptr, of_token, inside, k, K, K).to(tl.float32)
        values = rows(value_ptr, of_token, inside, v, W, W)
        sums, from_start, to_end, through, visible = _block(decay_ptr, segment_ptr, b, of_token, start, T, k, K, BLOCK)
        y = product(_scores(queries, keys, sums, visible, BLOCK), values, DOT) + product(queries * from_start, state, tl.float32)
        put_rows(y_ptr, y, of_token, inside, v, W, W)
        state = state * through[:, None] + product(tl.trans(keys * to_end), values, DOT)
    put_rows(last_ptr, state, in_state, k < K, v, W, W)


@triton.jit
def _backward_in_time(
    query_ptr, key_ptr, value_ptr, decay_ptr, segment_ptr, dy_ptr, dlast_ptr, dkey_ptr, dvalue_ptr, border_ptr, dinitial_ptr,
    B, T, H, K, W, BLOCKS,
    DOT: tl.constexpr, BLOCK: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    b, h = tl.program_id(0).to(tl.int64) // H, tl.program_id(0).to(tl.int64) % H
    k, v = tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    in_state, at = (b * H + h) * K + k, tl.arange(0, BLOCK)
    gradient = tl.zeros((BK, BV), tl.float32)  # of the state after the block
    if dlast_ptr is not None:
        gradient = rows(dlast_ptr, in_state, k < K, v, W, W)
    for n in range(BLOCKS):
        start = (BLOCKS - 1 - n) * BLOCK
        token = start + at
        inside, of_token = token < T, (b * T + token) * H + h
        queries = rows(query_ptr, of_token, inside, k, K, K).to(tl.float32)
        keys = rows(key_ptr, of_token, inside, k, K, K).to(tl.float32)
        values, outs = rows(value_ptr, of_token, inside, v, W, W), rows(dy_ptr, of_token, inside, v, W, W)
        sums, from_start, to_end, through, visible = _block(decay_ptr, segment_ptr, b, of_token, start, T, k, K, BLOCK)
        dvalue = product(tl.trans(_scores(queries, keys, sums, visible, BLOCK)), outs, DOT)
        dvalue += product(keys * to_end, gradient, tl.float32)
        put_rows(dvalue_ptr, dvalue, of_token, inside, v, W, W)
        pulls = tl.where(visible, product(outs, tl.trans(values), DOT), 0.0)
        dkey = product(values, tl.trans(gradient), tl.float32) * to_end
        for i in range(BLOCK):
            factor = tl.exp(tl.minimum(_row(sums, at, i)[None, :] - sums, 0.0))
            dkey += _row(pulls, at, i)[:, None] * factor * _row(queries, at, i)[None, :]
        put_rows(dkey_ptr, dkey, tl.program_id(1) * B * T * H + of_token, inside, k, K, K)
        gradient = gradient * through[:, None] + product(tl.trans(queries * from_start), outs, DOT)
        put_rows(border_ptr, gradient, ((b * H + h) * BLOCKS + BLOCKS - 1 - n) * K + k, k < K, v, W, W)
    put_rows(dinitial_ptr, gradient, in_state, k < K, v, W, W)


@triton.jit
def _forward_in_time(
    key_ptr, value_ptr, decay_ptr, segment_ptr, initial_ptr, dy_ptr, border_ptr, dlast_ptr, dquery_ptr, exact_ptr, B, T, H, K, W, BLOCKS,
    DOT: tl.constexpr, BLOCK: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    b, h = tl.program_id(0).to(tl.int64) // H, tl.program_id(0).to(tl.int64) % H
    k, v = tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    in_state, at = (b * H + h) * K + k, tl.arange(0, BLOCK)
    exact = exact_ptr + ((tl.program_id(1) * B * H + b * H + h) * (BLOCKS + 1)) * K + k
    state = tl.zeros((BK, BV), tl.float32)
    if initial_ptr is not None:
        state = rows(initial_ptr, in_state, k < K, v, W, W)
    for n in range(BLOCKS):
        start = n * BLOCK
        token = start + at
        inside, of_token = token < T, (b * T + token) * H + h
        keys = rows(key_ptr, of_token, inside, k, K, K).to(tl.float32)
        values, outs = rows(value_ptr, of_token, inside, v, W, W), rows(dy_ptr, of_token, inside, v, W, W)
        sums, from_start, to_end, through, visible = _block(decay_ptr, segment_ptr, b, of_token, start, T, k, K, BLOCK)
        pulls = tl.where(visible, product(outs, tl.trans(values), DOT), 0.0)
        dquery = product(outs, tl.trans(state), tl.float32) * from_start
        for j in range(BLOCK):
            factor = tl.exp(tl.minimum(sums - _row(sums, at, j)[None, :], 0.0))
            dquery += _row(tl.trans(pulls), at, j)[:, None] * factor * _row(keys, at, j)[None, :]
        put_rows(dquery_ptr, dquery, tl.program_id(1) * B * T * H + of_token, inside, k, K, K)
        border = rows(border_ptr, ((b * H + h) * BLOCKS + n) * K + k, k < K, v, W, W)
        tl.store(exact + n * K, tl.sum(border * state, 1), mask=k < K)
        state = state * through[:, None] + product(tl.trans(keys * to_end), values, DOT)
    if dlast_ptr is not None:
        state *= rows(dlast_ptr, in_state, k < K, v, W, W)
        tl.store(exact + BLOCKS * K, tl.sum(state, 1), mask=k < K)


class _Gla(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, decay: Tensor, state: Tensor | None, segment: Tensor
    ) -> tuple[Tensor, Tensor]:
        (b, t, heads, k), v = key.shape, value.shape[-1]
        y, last = torch.empty_like(value), decay.new_empty(b, heads, k, v)
        grid, options = _programs(key, value)
        _forward[grid](query, key, value, decay, segment, state, y, last, t, heads, k, v, **options)
        ctx.save_for_backward(query, key, value, decay, state, segment)
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Any, ...]:
        query, key, value, decay, state, segment = ctx.saved_tensors
        (b, t, heads, k), v = key.shape, value.shape[-1]
        dy = torch.zeros_like(value) if dy is None else dy.contiguous()
        dlast = in_rows(dlast, torch.float32)
        grid, options = _programs(key, value)
        slices, blocks = grid[1], triton.cdiv(t, BLOCK)
        dquery, dkey = decay.new_empty(2, slices, b, t, heads, k)
        dvalue, dinitial = torch.empty_like(value), decay.new_empty(b, heads, k, v)
        border, exact = decay.new_empty(b, heads, blocks, k, v), decay.new_zeros(slices, b, heads, blocks + 1, k)
        sizes = (b, t, heads, k, v, blocks)
        _backward_in_time[grid](query, key, value, decay, segment, dy, dlast, dkey, dvalue, border, dinitial, *sizes, **options)
        _forward_in_time[grid](key, value, decay, segment, state, dy, border, dlast, dquery, exact, *sizes, **options)
        dquery, dkey = dquery.sum(0), dkey.sum(0)
        change = (query * dquery - key * dkey).flatten(2)
        ddecay = sums_to_the_end(change, exact.sum(0).transpose(2, 3).flatten(1, 2), segment, BLOCK).view(decay.shape)
        return dquery.to(query.dtype), dkey.to(key.dtype), dvalue, ddecay, None if state is None else dinitial, None


def _programs(key: Tensor, value: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    """The grid, and the constants: how many channels a program takes, and in which type products take what is not summed up before."""
    b, _, heads, k = key.shape
    channels = max(16, min(32, triton.next_power_of_2(value.shape[-1])))
    options = {"DOT": operands(value.dtype), "BLOCK": BLOCK, "BK": max(16, triton.next_power_of_2(k)), "BV": channels}
    return (b * heads, triton.cdiv(value.shape[-1], channels)), options


def gla_triton(given: Gla) -> tuple[Tensor, Tensor]:
    """The blocks as Triton programs."""
    value, state = given.value_bthv, in_rows(given.state_bhkv, torch.float32)
    (b, _, heads, k), v = given.key_bthk.shape, value.shape[-1]
    if value.numel() == 0:
        return torch.zeros_like(value), value.new_zeros(b, heads, k, v, dtype=torch.float32) if state is None else state
    known = documents(given.document_bt)
    key, decay = given.key_bthk, given.decay_bthk.float()
    real = known.real[..., None, None]
    if not known.plain:
        key, decay = torch.where(real, key, 0), torch.where(real, decay, 0)
    y, last = _Gla.apply(
        in_rows(given.query_bthk, value.dtype),
        in_rows(key, value.dtype),
        in_rows(value, value.dtype),
        in_rows(decay, torch.float32),
        state,
        in_rows(known.segment_after(given.continues_b), torch.int32),
    )
    return y if known.plain else torch.where(real, y, 0), last
