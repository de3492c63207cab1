"""The delta rule for GPUs in Triton: a program goes through one head's row in blocks of 16 tokens, a slice of its state in registers.

The equations of a block are those of `fast.py`; the triangular system is inverted by substitution. The backward pass goes once backwards in
time with the gradient of the state and once forwards with the state. The decay's gradient follows from the others: that of token t is that
of token t + 1 plus query dquery - value dvalue, begun anew at each block from the product of state and gradient.

Only forward numerics and gradients under Triton's interpreter have been checked, no speed on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmlm.kernels.delta_rule.reference import DeltaRule
from mmlm.kernels.documents import documents
from mmlm.kernels.recurrence import in_rows, sums_to_the_end

BLOCK = 16  # tokens, the least that a matrix product takes


@triton.jit
def _rows(pointer, row, row_mask, column, columns):
    """Float32 rows of a matrix, zero outside."""
    place = pointer + row[:, None] * columns + column[None, :]
    return tl.load(place, mask=row_mask[:, None] & (column < columns)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _put_rows(pointer, x, row, row_mask, column, columns):
    place = pointer + row[:, None] * columns + column[None, :]
    tl.store(place, x.to(pointer.dtype.element_ty), mask=row_mask[:, None] & (column < columns)[None, :])


@triton.jit
def _product(a, b):
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _block(keys, beta_ptr, decay_ptr, segment_ptr, b, h, start, T, H, GATED: tl.constexpr, BLOCK: tl.constexpr):
    """beta, the mask E of decays between tokens, decays from the block's start, to its end and through it, key key^T o E below the diagonal
    and the inverse of I + A."""
    at = tl.arange(0, BLOCK)
    token = start + at
    inside = token < T
    beta = tl.load(beta_ptr + (b * T + token) * H + h, mask=inside, other=0.0).to(tl.float32)
    segment = tl.load(segment_ptr + b * T + tl.minimum(token, T - 1))
    before = tl.load(segment_ptr + b * T + start - 1, mask=start > 0, other=0)
    last = tl.max(segment, 0)
    visible = (at[:, None] >= at[None, :]) & (segment[:, None] == segment[None, :])
    if GATED:
        decay = tl.load(decay_ptr + (b * T + token) * H + h, mask=inside, other=0.0).to(tl.float32)
        sums = tl.cumsum(decay, 0)
        total = tl.sum(decay, 0)
        mask = tl.where(visible, tl.exp(tl.where(visible, sums[:, None] - sums[None, :], 0.0)), 0.0)
        from_start = tl.where(segment == before, tl.exp(sums), 0.0)
        to_end = tl.where(segment == last, tl.exp(total - sums), 0.0)
        through = tl.where(last == before, tl.exp(total), 0.0)
    else:
        mask = tl.where(visible, 1.0, 0.0)
        from_start = tl.where(segment == before, 1.0, 0.0)
        to_end = tl.where(segment == last, 1.0, 0.0)
        through = tl.where(last == before, 1.0, 0.0)
    below = tl.where(at[:, None] > at[None, :], _product(keys, tl.trans(keys)) * mask, 0.0)
    system = below * beta[:, None]
    inverse = tl.where(at[:, None] == at[None, :], 1.0, 0.0)
    for i in range(1, BLOCK):
        row = tl.sum(tl.where((at == i)[:, None], system, 0.0), 0)
        found = tl.sum(row[:, None] * inverse, 0)
        inverse = tl.where((at == i)[:, None], inverse - found[None, :], inverse)
    return beta, mask, from_start, to_end, through, below, inverse


@triton.jit
def _forward(
    query_ptr, key_ptr, value_ptr, beta_ptr, decay_ptr, segment_ptr, initial_ptr, y_ptr, last_ptr, errors_ptr,
    T, H, G, K, W,
    GATED: tl.constexpr, CONTINUED: tl.constexpr, KEEPS: tl.constexpr, BLOCK: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    b, h = tl.program_id(0).to(tl.int64) // H, tl.program_id(0).to(tl.int64) % H
    group = h // (H // G)
    k, v = tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    rows = (b * H + h) * K + k
    state = tl.zeros((BK, BV), tl.float32)
    if CONTINUED:
        state = _rows(initial_ptr, rows, k < K, v, W)
    for start in range(0, T, BLOCK):
        token = start + tl.arange(0, BLOCK)
        inside = token < T
        of_key, of_value = (b * T + token) * G + group, (b * T + token) * H + h
        keys, queries = _rows(key_ptr, of_key, inside, k, K), _rows(query_ptr, of_key, inside, k, K)
        values = _rows(value_ptr, of_value, inside, v, W)
        beta, mask, from_start, to_end, through, below, inverse = _block(
            keys, beta_ptr, decay_ptr, segment_ptr, b, h, start, T, H, GATED, BLOCK
        )
        wanted = values - _product(keys * from_start[:, None], state)
        corrections = _product(inverse, beta[:, None] * wanted)
        y = _product(queries * from_start[:, None], state)
        y += _product(_product(queries, tl.trans(keys)) * mask, corrections)
        _put_rows(y_ptr, y, of_value, inside, v, W)
        if KEEPS:
            _put_rows(errors_ptr, wanted - _product(below, corrections), of_value, inside, v, W)
        state = state * through + _product(tl.trans(keys * to_end[:, None]), corrections)
    _put_rows(last_ptr, state, rows, k < K, v, W)


@triton.jit
def _backward_in_time(
    query_ptr, key_ptr, beta_ptr, decay_ptr, segment_ptr, errors_ptr, dy_ptr, dlast_ptr,
    dkey_ptr, dread_ptr, dbeta_ptr, border_ptr, dinitial_ptr,
    B, T, H, G, K, W, BLOCKS,
    GATED: tl.constexpr, ENDED: tl.constexpr, BLOCK: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    b, h = tl.program_id(0).to(tl.int64) // H, tl.program_id(0).to(tl.int64) % H
    slice_ = tl.program_id(1).to(tl.int64)
    group = h // (H // G)
    k, v = tl.arange(0, BK), slice_ * BV + tl.arange(0, BV)
    rows = (b * H + h) * K + k
    gradient = tl.zeros((BK, BV), tl.float32)  # of the state after the block
    if ENDED:
        gradient = _rows(dlast_ptr, rows, k < K, v, W)
    for n in range(BLOCKS):
        start = (BLOCKS - 1 - n) * BLOCK
        token = start + tl.arange(0, BLOCK)
        inside = token < T
        of_key, of_value = (b * T + token) * G + group, (b * T + token) * H + h
        keys, queries = _rows(key_ptr, of_key, inside, k, K), _rows(query_ptr, of_key, inside, k, K)
        errors, outs = _rows(errors_ptr, of_value, inside, v, W), _rows(dy_ptr, of_value, inside, v, W)
        beta, mask, from_start, to_end, through, below, inverse = _block(
            keys, beta_ptr, decay_ptr, segment_ptr, b, h, start, T, H, GATED, BLOCK
        )
        corrections = beta[:, None] * errors
        right = _product(keys * to_end[:, None], gradient)
        right += _product(tl.trans(_product(queries, tl.trans(keys)) * mask), outs)
        du = _product(tl.trans(inverse), right)
        reads = -beta[:, None] * du
        at = tl.arange(0, BLOCK)
        strict = tl.where(at[:, None] > at[None, :], mask, 0.0)
        dkey = _product(corrections, tl.trans(gradient)) * to_end[:, None]
        dkey += _product(tl.trans(_product(outs, tl.trans(corrections)) * mask), queries)
        dkey += _product(tl.trans(_product(reads, tl.trans(corrections)) * strict), keys)
        gradient = gradient * through + _product(tl.trans(queries * from_start[:, None]), outs)
        gradient += _product(tl.trans(keys * from_start[:, None]), reads)
        part = slice_ * B * T * H
        _put_rows(dkey_ptr, dkey, part + of_value, inside, k, K)
        _put_rows(dread_ptr, reads, of_value, inside, v, W)
        tl.store(dbeta_ptr + part + of_value, tl.sum(du * errors, 1), mask=inside)
        if GATED:
            _put_rows(border_ptr, gradient, ((b * H + h) * BLOCKS + BLOCKS - 1 - n) * K + k, k < K, v, W)
    _put_rows(dinitial_ptr, gradient, rows, k < K, v, W)


@triton.jit
def _forward_in_time(
    query_ptr, key_ptr, value_ptr, beta_ptr, decay_ptr, segment_ptr, initial_ptr, errors_ptr, dy_ptr, dread_ptr, border_ptr, dlast_ptr,
    dquery_ptr, dkey_ptr, change_ptr, exact_ptr,
    B, T, H, G, K, W, BLOCKS,
    GATED: tl.constexpr, CONTINUED: tl.constexpr, ENDED: tl.constexpr, BLOCK: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    b, h = tl.program_id(0).to(tl.int64) // H, tl.program_id(0).to(tl.int64) % H
    slice_ = tl.program_id(1).to(tl.int64)
    group = h // (H // G)
    k, v = tl.arange(0, BK), slice_ * BV + tl.arange(0, BV)
    rows = (b * H + h) * K + k
    part = slice_ * B * T * H
    exact = (slice_ * B * H + b * H + h) * (BLOCKS + 1)
    state = tl.zeros((BK, BV), tl.float32)
    if CONTINUED:
        state = _rows(initial_ptr, rows, k < K, v, W)
    for n in range(BLOCKS):
        start = n * BLOCK
        token = start + tl.arange(0, BLOCK)
        inside = token < T
        of_key, of_value = (b * T + token) * G + group, (b * T + token) * H + h
        keys = _rows(key_ptr, of_key, inside, k, K)
        errors, outs = _rows(errors_ptr, of_value, inside, v, W), _rows(dy_ptr, of_value, inside, v, W)
        reads = _rows(dread_ptr, of_value, inside, v, W)
        beta, mask, from_start, to_end, through, below, inverse = _block(
            keys, beta_ptr, decay_ptr, segment_ptr, b, h, start, T, H, GATED, BLOCK
        )
        corrections = beta[:, None] * errors
        at = tl.arange(0, BLOCK)
        strict = tl.where(at[:, None] > at[None, :], mask, 0.0)
        dquery = _product(outs, tl.trans(state)) * from_start[:, None]
        dquery += _product(_product(outs, tl.trans(corrections)) * mask, keys)
        dkey = _product(reads, tl.trans(state)) * from_start[:, None]
        dkey += _product(_product(reads, tl.trans(corrections)) * strict, keys)
        _put_rows(dquery_ptr, dquery, part + of_value, inside, k, K)
        _put_rows(dkey_ptr, dkey, part + of_value, inside, k, K)
        if GATED:
            border = _rows(border_ptr, ((b * H + h) * BLOCKS + n) * K + k, k < K, v, W)
            tl.store(exact_ptr + exact + n, tl.sum(border * state))
            queries, values = _rows(query_ptr, of_key, inside, k, K), _rows(value_ptr, of_value, inside, v, W)
            change = tl.sum(queries * dquery, 1) + tl.sum(values * reads, 1)
            tl.store(change_ptr + part + of_value, change, mask=inside)
        state = state * through + _product(tl.trans(keys * to_end[:, None]), corrections)
    if GATED:
        if ENDED:
            tl.store(exact_ptr + exact + BLOCKS, tl.sum(_rows(dlast_ptr, rows, k < K, v, W) * state))


class _DeltaRule(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        beta: Tensor,
        decay: Tensor | None,
        state: Tensor | None,
        segment: Tensor,
        keeps: bool,
    ) -> tuple[Tensor, Tensor]:
        (b, t, heads, v), (groups, k) = value.shape, key.shape[2:]
        y, last = torch.empty_like(value), value.new_empty(b, heads, k, v, dtype=torch.float32)
        errors = value.new_empty(b, t, heads, v, dtype=torch.float32) if keeps else None
        grid, blocks = _programs(value, key)
        given = (query, key, value, beta, decay, segment, state)
        options = {"GATED": decay is not None, "CONTINUED": state is not None, "KEEPS": keeps}
        _forward[grid](*given, y, last, errors, t, heads, groups, k, v, **options, **blocks)
        ctx.save_for_backward(*given, errors)
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Any, ...]:
        query, key, value, beta, decay, segment, state, errors = ctx.saved_tensors
        (b, t, heads, v), (groups, k) = value.shape, key.shape[2:]
        dy = torch.zeros_like(value) if dy is None else dy.contiguous()
        dlast = None if dlast is None else dlast.float().contiguous()
        grid, blocks = _programs(value, key)
        num_blocks, slices = -(-t // BLOCK), grid[1]

        def empty(*shape: int) -> Tensor:
            return value.new_empty(shape, dtype=torch.float32)

        dkey, dkey_read, dquery = (empty(slices, b, t, heads, k) for _ in range(3))
        dread, dbeta, dinitial = empty(b, t, heads, v), empty(slices, b, t, heads), empty(b, heads, k, v)
        border = change = exact = None
        if decay is not None:
            border, change = empty(b, heads, num_blocks, k, v), empty(slices, b, t, heads)
            exact = value.new_zeros(slices, b, heads, num_blocks + 1, dtype=torch.float32)
        sizes = (b, t, heads, groups, k, v, num_blocks)
        options = {"GATED": decay is not None, "ENDED": dlast is not None, **blocks}
        _backward_in_time[grid](
            query, key, beta, decay, segment, errors, dy, dlast, dkey, dread, dbeta, border, dinitial, *sizes, **options
        )
        _forward_in_time[grid](
            query, key, value, beta, decay, segment, state, errors, dy, dread, border, dlast, dquery, dkey_read, change, exact,
            *sizes, CONTINUED=state is not None, **options,
        )  # fmt: skip
        ddecay = None if change is None or exact is None else sums_to_the_end(change.sum(0), exact.sum(0), segment, BLOCK)
        dquery, dkey = (x.sum(0).unflatten(2, (groups, -1)).sum(3).to(key.dtype) for x in (dquery, dkey + dkey_read))
        return dquery, dkey, (-dread).to(value.dtype), dbeta.sum(0), ddecay, None if state is None else dinitial, None, None


def _programs(value: Tensor, key: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid, and how many channels a program takes."""
    b, _, heads, v = value.shape
    keys, values = max(16, triton.next_power_of_2(key.shape[-1])), max(16, min(32, triton.next_power_of_2(v)))
    return (b * heads, triton.cdiv(v, values)), {"BLOCK": BLOCK, "BK": keys, "BV": values}


def delta_rule_triton(given: DeltaRule) -> tuple[Tensor, Tensor]:
    """The blocks as Triton programs."""
    value, k, dtype = given.value_bthv, given.key_btgk.shape[-1], given.value_bthv.dtype
    b, t, heads, v = value.shape
    state = in_rows(given.state_bhkv, torch.float32)
    if b * t * heads == 0:
        return torch.zeros_like(value), value.new_zeros(b, heads, k, v, dtype=torch.float32) if state is None else state
    known = documents(given.document_bt)
    beta, decay = given.beta_bth, given.decay_bth
    if not known.plain:
        real = known.real[..., None]
        beta, decay = torch.where(real, beta, 0), None if decay is None else torch.where(real, decay, 0)
    y, last = _DeltaRule.apply(
        in_rows(given.query_btgk, dtype),
        in_rows(given.key_btgk, dtype),
        in_rows(value, dtype),
        in_rows(beta, torch.float32),
        in_rows(decay, torch.float32),
        state,
        in_rows(known.segment_after(given.continues_b), torch.int32),
        given.wants_gradients(),
    )
    if not known.plain:
        y = torch.where(known.real[..., None, None], y, 0)
    return y, last
