"""The selective scan on a GPU: one program a block of channels of a row, its states in registers, tokens one after the other.

The states at the beginnings of chunks are kept; the backward pass takes the chunks from the last to the first, goes through each again and
writes its states to a scratch of one chunk, then comes back. Sums over channels are partial sums of the blocks, added afterwards, so that
the same inputs give the same bits. Not timed: no GPU was at hand; its numbers are checked under Triton's interpreter.

Axes: b rows   t tokens   i channels   n state channels
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmlm.kernels.documents import documents
from mmlm.kernels.programs import softplus
from mmlm.kernels.recurrence import in_rows, kinds
from mmlm.kernels.selective_scan.reference import SelectiveScan

_CHUNK, _CHANNELS = 16, 32


@triton.jit
def _token(x, step, key, kind, bias, channel, state, is_channel, is_state, row, t, i, n, k, EXACT: tl.constexpr):  # noqa: ANN001, ANN202, N803
    """x, raw step, step and key of token k; at padding all are 0, so that the state passes."""
    what = tl.load(kind + row * t + k)
    place = (row * t + k) * i + channel
    x_i = tl.load(x + place, mask=is_channel & (what > 0), other=0.0).to(EXACT)
    raw_i = tl.load(step + place, mask=is_channel & (what > 0), other=0.0).to(EXACT) + bias
    step_i = tl.where(what > 0, softplus(raw_i), 0.0)
    key_n = tl.load(key + (row * t + k) * n + state, mask=is_state & (what > 0), other=0.0).to(EXACT)
    return what, place, x_i, raw_i, step_i, key_n


@triton.jit
def _forward(  # noqa: ANN202
    x, step, gate, key, query, bias, decay, skip, initial, kind, y, last, begins, t, i, n, gate_b, gate_t,  # noqa: ANN001
    NEGATIVE: tl.constexpr, CHUNK: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr, EXACT: tl.constexpr,  # noqa: N803
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    channel, state = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, STATES)
    is_channel, is_state = channel < i, state < n
    inside, place_in = is_channel[:, None] & is_state[None, :], channel[:, None] * n + state[None, :]
    rate = tl.load(decay + place_in, mask=inside, other=0.0)
    bias_i = tl.load(bias + channel, mask=is_channel, other=0.0)
    skip_i = tl.load(skip + channel, mask=is_channel, other=0.0)
    h = tl.zeros((CHANNELS, STATES), EXACT)
    if initial is not None:
        h = tl.load(initial + row * i * n + place_in, mask=inside, other=0.0)
    for k in range(t):
        if begins is not None:
            if k % CHUNK == 0:
                tl.store(begins + (row * tl.cdiv(t, CHUNK) + k // CHUNK) * i * n + place_in, h, mask=inside)
        what, place, x_i, raw_i, step_i, key_n = _token(
            x, step, key, kind, bias_i, channel, state, is_channel, is_state, row, t, i, n, k, EXACT
        )
        through = tl.exp(step_i[:, None] * rate)
        if NEGATIVE:
            through = 2.0 * through - 1.0
        h = through * tl.where(what == 2, 0.0, h) + (step_i * x_i)[:, None] * key_n[None, :]
        query_n = tl.load(query + (row * t + k) * n + state, mask=is_state & (what > 0), other=0.0).to(EXACT)
        out = tl.sum(h * query_n[None, :], axis=1) + skip_i * x_i
        if gate is not None:
            z = tl.load(gate + row * gate_b + k * gate_t + channel, mask=is_channel & (what > 0), other=0.0).to(EXACT)
            out = out * z / (1.0 + tl.exp(-z))
        tl.store(y + place, out.to(y.dtype.element_ty), mask=is_channel)
    tl.store(last + row * i * n + place_in, h, mask=inside)


@triton.jit
def _backward(  # noqa: ANN202
    x, step, gate, key, query, bias, decay, skip, kind, begins, dy, dlast, scratch,  # noqa: ANN001
    dx, dstep, dgate, dbias, ddecay, dkey, dquery, dskip, dinitial, t, i, n, gate_b, gate_t,  # noqa: ANN001
    NEGATIVE: tl.constexpr, CHUNK: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr, EXACT: tl.constexpr,  # noqa: N803
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    channel, state = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, STATES)
    is_channel, is_state = channel < i, state < n
    inside, place_in = is_channel[:, None] & is_state[None, :], channel[:, None] * n + state[None, :]
    share = (tl.program_id(0) * tl.num_programs(1) + row) * t * n  # of the partial sums over channels
    rate = tl.load(decay + place_in, mask=inside, other=0.0)
    bias_i = tl.load(bias + channel, mask=is_channel, other=0.0)
    skip_i = tl.load(skip + channel, mask=is_channel, other=0.0)
    g = tl.zeros((CHANNELS, STATES), EXACT)
    if dlast is not None:
        g = tl.load(dlast + row * i * n + place_in, mask=inside, other=0.0)
    rate_sum = tl.zeros((CHANNELS, STATES), EXACT)
    bias_sum, skip_sum = tl.zeros((CHANNELS,), EXACT), tl.zeros((CHANNELS,), EXACT)
    chunks = tl.cdiv(t, CHUNK)
    for back in range(chunks):
        first = (chunks - 1 - back) * CHUNK
        count = tl.minimum(t - first, CHUNK)
        h = tl.load(begins + (row * chunks + first // CHUNK) * i * n + place_in, mask=inside, other=0.0)
        for j in range(count):
            what, place, x_i, raw_i, step_i, key_n = _token(
                x, step, key, kind, bias_i, channel, state, is_channel, is_state, row, t, i, n, first + j, EXACT
            )
            h = tl.where(what == 2, 0.0, h)
            tl.store(scratch + (row * CHUNK + j) * i * n + place_in, h, mask=inside)
            through = tl.exp(step_i[:, None] * rate)
            if NEGATIVE:
                through = 2.0 * through - 1.0
            h = through * h + (step_i * x_i)[:, None] * key_n[None, :]
        tl.debug_barrier()  # the scratch is read by other threads than wrote it
        for j in range(count):
            k = first + count - 1 - j
            what, place, x_i, raw_i, step_i, key_n = _token(
                x, step, key, kind, bias_i, channel, state, is_channel, is_state, row, t, i, n, k, EXACT
            )
            before = tl.load(scratch + (row * CHUNK + count - 1 - j) * i * n + place_in, mask=inside, other=0.0)
            slope = tl.exp(step_i[:, None] * rate)
            through = slope
            if NEGATIVE:
                slope = 2.0 * slope
                through = slope - 1.0
            h = through * before + (step_i * x_i)[:, None] * key_n[None, :]
            query_n = tl.load(query + (row * t + k) * n + state, mask=is_state & (what > 0), other=0.0).to(EXACT)
            d = tl.load(dy + place, mask=is_channel & (what > 0), other=0.0).to(EXACT)
            if gate is not None:
                z = tl.load(gate + row * gate_b + k * gate_t + channel, mask=is_channel & (what > 0), other=0.0).to(EXACT)
                sigmoid = 1.0 / (1.0 + tl.exp(-z))
                out = tl.sum(h * query_n[None, :], axis=1) + skip_i * x_i
                tl.store(dgate + place, (d * out * sigmoid * (1.0 + z * (1.0 - sigmoid))).to(dgate.dtype.element_ty), mask=is_channel)
                d = d * z * sigmoid
            skip_sum += d * x_i
            g += d[:, None] * query_n[None, :]
            tl.store(dquery + share + k * n + state, tl.sum(h * d[:, None], axis=0), mask=is_state)
            tl.store(dkey + share + k * n + state, tl.sum(g * (step_i * x_i)[:, None], axis=0), mask=is_state)
            enters = tl.sum(g * key_n[None, :], axis=1)
            pull = g * before * slope
            rate_sum += pull * step_i[:, None]
            draw = (tl.sum(pull * rate, axis=1) + enters * x_i) / (1.0 + tl.exp(-raw_i))
            draw = tl.where(is_channel & (what > 0), draw, 0.0)
            bias_sum += draw
            tl.store(dstep + place, draw.to(dstep.dtype.element_ty), mask=is_channel)
            tl.store(dx + place, (d * skip_i + enters * step_i).to(dx.dtype.element_ty), mask=is_channel)
            g = tl.where(what == 2, 0.0, g * through)
        tl.debug_barrier()  # before the next chunk writes
    tl.store(dbias + row * i + channel, bias_sum, mask=is_channel)
    tl.store(dskip + row * i + channel, skip_sum, mask=is_channel)
    tl.store(ddecay + row * i * n + place_in, rate_sum, mask=inside)
    if dinitial is not None:
        tl.store(dinitial + row * i * n + place_in, g, mask=inside)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_bti: Tensor,
        step_bti: Tensor,
        gate_bti: Tensor | None,
        key_btn: Tensor,
        query_btn: Tensor,
        bias_i: Tensor,
        decay_in: Tensor,
        skip_i: Tensor,
        state_bin: Tensor | None,
        kind_bt: Tensor,
        negative: bool,
    ) -> tuple[Tensor, Tensor]:
        b, t, i = x_bti.shape
        n, exact = decay_in.shape[1], decay_in.dtype
        y, last = torch.empty_like(x_bti), decay_in.new_empty(b, i, n)
        begins = decay_in.new_empty(b, triton.cdiv(t, _CHUNK), i, n) if any(ctx.needs_input_grad) else None
        gate_strides = (0, 0) if gate_bti is None else gate_bti.stride()[:2]
        inputs = (x_bti, step_bti, gate_bti, key_btn, query_btn, bias_i, decay_in, skip_i)
        ctx.sizes = (t, i, n, *gate_strides)
        ctx.constants = (negative, _CHUNK, _CHANNELS, triton.next_power_of_2(n), tl.float64 if exact == torch.float64 else tl.float32)
        _forward[triton.cdiv(i, _CHANNELS), b](*inputs, state_bin, kind_bt, y, last, begins, *ctx.sizes, *ctx.constants)
        ctx.save_for_backward(*inputs, kind_bt, begins)
        ctx.continued = state_bin is not None
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Any, ...]:
        x, step, gate, key, query, bias, decay, skip, kind, begins = ctx.saved_tensors
        b, _, i = x.shape
        n, blocks = decay.shape[1], triton.cdiv(i, _CHANNELS)
        dy = torch.zeros_like(x) if dy is None else dy.contiguous()
        dlast = None if dlast is None else dlast.contiguous()
        dx, dstep = torch.empty_like(x), torch.empty_like(step)
        dgate = None if gate is None else torch.empty_like(x)
        dbias, dskip, ddecay = (part.new_empty(b, *part.shape) for part in (bias, skip, decay))
        dkey, dquery = decay.new_empty(2, blocks, *key.shape)
        dstate = decay.new_empty(b, i, n) if ctx.continued else None
        scratch = decay.new_empty(b, _CHUNK, i, n)
        _backward[blocks, b](
            x, step, gate, key, query, bias, decay, skip, kind, begins, dy, dlast, scratch,
            dx, dstep, dgate, dbias, ddecay, dkey, dquery, dskip, dstate, *ctx.sizes, *ctx.constants,
        )  # fmt: skip
        dkey, dquery = (part.sum(0).to(key.dtype) for part in (dkey, dquery))
        return dx, dstep, dgate, dkey, dquery, dbias.sum(0), ddecay.sum(0), dskip.sum(0), dstate, None, None


def selective_scan_triton(given: SelectiveScan) -> tuple[Tensor, Tensor]:
    """The recurrence in Triton, the gate read as it lies."""
    dtype = given.x_bti.dtype
    exact = torch.float64 if torch.float64 in (dtype, given.decay_in.dtype) else torch.float32
    gate = None if given.gate_bti is None else given.gate_bti.to(dtype)
    y, last = _SelectiveScan.apply(
        in_rows(given.x_bti, dtype),
        in_rows(given.step_bti, dtype),
        gate if gate is None or gate.stride(2) == 1 else gate.contiguous(),
        in_rows(given.key_btn, dtype),
        in_rows(given.query_btn, dtype),
        in_rows(given.step_bias_i, exact),
        in_rows(given.decay_in, exact),
        in_rows(given.skip_i, exact),
        in_rows(given.state_bin, exact),
        kinds(documents(given.document_bt), given.continues_b),
        given.negative,
    )
    return y, last
