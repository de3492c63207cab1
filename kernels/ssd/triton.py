"""The Mamba-2 recurrence on a GPU: the chunks of `fast.py` side by side, and one short pass that hands the state from chunk to chunk.

Forwards: what each chunk adds to the state; the states before all chunks; the outputs. Backwards the states are computed again, then with
D the gradient of the state after a chunk, from the last chunk to the first
    D <- exp(s_last) D + sum_i exp(s_i) dy_i query_i^T
and in each chunk, with W = (query key^T) o M and V = dy X^T,
    dX = W^T dy + exp(s_last - s) key D^T;   dquery = (M o V) key + exp(s) dy h;   dkey = (M o V)^T query + exp(s_last - s) X D
The gradient of token k's logarithm of decay is the sum of all that flows past it: of W_ij V_ij with i >= k > j, of exp(s_i) dy_i h query_i
with i >= k, of exp(s_last - s_j) X_j D key_j with j < k, and of exp(s_last) h D. Nothing large cancels in it. Programs of a group of heads
go through its heads one after the other, so no sum is shared and the same inputs give the same bits where the blocks are the same.

Axes: b rows   t tokens   h heads   p channels of a head   g groups of heads   n state channels   c chunks   q tokens of a chunk
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmlm.kernels.documents import documents
from mmlm.kernels.programs import operands, product, put_rows, rows, tuned
from mmlm.kernels.ssd.reference import Ssd

_CHOICES = (
    {"BP": 32, "BN": 32, "num_warps": 4},
    {"BP": 64, "BN": 32, "num_warps": 4},
    {"BP": 64, "BN": 64, "num_warps": 4},
    {"BP": 64, "BN": 64, "num_warps": 8},
)


@triton.jit
def _chunk(step_ptr, decay_ptr, segment_ptr, real_ptr, b, h, start, T, H, Q: tl.constexpr):
    """Of a chunk's tokens: whether they are real, step (0 at padding), running sum of step * decay, factors from its start and to its end,
    segment; and the factor through it."""
    token = start + tl.arange(0, Q)
    real = tl.load(real_ptr + b * T + token, mask=token < T, other=0) > 0
    step = tl.load(step_ptr + (b * T + token) * H + h, mask=real, other=0.0)
    segment = tl.load(segment_ptr + b * T + tl.minimum(token, T - 1))
    before = tl.load(segment_ptr + b * T + start - 1, mask=start > 0, other=0)
    last = tl.max(segment, 0)
    change = step * tl.load(decay_ptr + h)
    sums, total = tl.cumsum(change, 0), tl.sum(change, 0)
    from_start = tl.where(segment == before, tl.exp(sums), 0.0)
    to_end = tl.where(segment == last, tl.exp(total - sums), 0.0)
    through = tl.where(last == before, tl.exp(total), 0.0)
    return real, step, sums, from_start, to_end, through, segment


@triton.jit
def _between(sums, segment, Q: tl.constexpr):
    """M: the factors between tokens i >= j of one document."""
    at = tl.arange(0, Q)
    visible = (at[:, None] >= at[None, :]) & (segment[:, None] == segment[None, :])
    return tl.where(visible, tl.exp(tl.where(visible, sums[:, None] - sums[None, :], 0.0)), 0.0)


@tuned(*_CHOICES, key=["P", "N", "Q", "DOT"])
@triton.jit
def _add(
    values_ptr, keys_ptr, step_ptr, decay_ptr, segment_ptr, real_ptr, added_ptr, through_ptr,
    T, H, G, CHUNKS, P: tl.constexpr, N: tl.constexpr,
    BACK: tl.constexpr, Q: tl.constexpr, DOT: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """What a chunk adds to the state after it, sum_j exp(s_last - s_j) step_j x_j key_j^T; backwards, with dy and queries for x and keys,
    what it adds to the gradient of the state before it. One program a chunk, head and block of the state."""
    parts: tl.constexpr = tl.cdiv(N, BN)
    place = tl.program_id(0).to(tl.int64)  # of chunk and head: [b, c, h]
    b, c, h = place // (CHUNKS * H), place // H % CHUNKS, place % H
    block = tl.program_id(1)
    p, n = block // parts * BP + tl.arange(0, BP), block % parts * BN + tl.arange(0, BN)
    start = c * Q
    real, step, sums, from_start, to_end, through, segment = _chunk(step_ptr, decay_ptr, segment_ptr, real_ptr, b, h, start, T, H, Q)
    token = b * T + start + tl.arange(0, Q)
    values = rows(values_ptr, token * H + h, real, p, P, P)
    keys = rows(keys_ptr, token * G + h // (H // G), real, n, N, N)
    weight = from_start if BACK else to_end * step
    put_rows(added_ptr, product(tl.trans(values * weight[:, None]), keys, DOT), place * P + p, p < P, n, N, N)
    tl.store(through_ptr + place, through, mask=block == 0)


@triton.jit
def _pass_on(states_ptr, through_ptr, initial_ptr, last_ptr, H, CHUNKS, SIZE, BACK: tl.constexpr, BLOCK: tl.constexpr):
    """In place of what each chunk adds the state before it (backwards: its gradient after it), and what is left behind the last. One
    program a head and block of the state."""
    head = tl.program_id(0).to(tl.int64)
    b, h = head // H, head % H
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < SIZE
    state = tl.zeros((BLOCK,), tl.float32)
    if initial_ptr is not None:
        state = tl.load(initial_ptr + head * SIZE + at, mask=inside, other=0.0)
    for i in range(CHUNKS):
        place = (b * CHUNKS + (CHUNKS - 1 - i if BACK else i)) * H + h
        added = tl.load(states_ptr + place * SIZE + at, mask=inside, other=0.0)
        tl.store(states_ptr + place * SIZE + at, state, mask=inside)
        state = state * tl.load(through_ptr + place) + added
    tl.store(last_ptr + head * SIZE + at, state, mask=inside)


@tuned(*_CHOICES, key=["P", "N", "Q", "DOT"])
@triton.jit
def _outputs(
    x_ptr, key_ptr, query_ptr, step_ptr, decay_ptr, segment_ptr, real_ptr, states_ptr, y_ptr,
    T, H, G, CHUNKS, P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, DOT: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """((query key^T) o M) X + exp(s) query h. One program a chunk, head and block of the head's channels."""
    place = tl.program_id(0).to(tl.int64)
    b, c, h = place // (CHUNKS * H), place // H % CHUNKS, place % H
    p = tl.program_id(1) * BP + tl.arange(0, BP)
    start = c * Q
    real, step, sums, from_start, to_end, through, segment = _chunk(step_ptr, decay_ptr, segment_ptr, real_ptr, b, h, start, T, H, Q)
    token = b * T + start + tl.arange(0, Q)
    of_key, of_value = token * G + h // (H // G), token * H + h
    scores, carried = tl.zeros((Q, Q), tl.float32), tl.zeros((Q, BP), tl.float32)
    for first in range(0, N, BN):
        n = first + tl.arange(0, BN)
        queries = rows(query_ptr, of_key, real, n, N, N)
        scores += product(queries, tl.trans(rows(key_ptr, of_key, real, n, N, N)), DOT)
        carried += product(queries, tl.trans(rows(states_ptr, place * P + p, p < P, n, N, N)), DOT)
    values = rows(x_ptr, of_value, real, p, P, P) * step[:, None]
    y = product(scores * _between(sums, segment, Q), values, DOT) + from_start[:, None] * carried
    put_rows(y_ptr, y, of_value, start + tl.arange(0, Q) < T, p, P, P)


@tuned(*_CHOICES, key=["P", "N", "Q", "DOT"])
@triton.jit
def _head_gradients(
    x_ptr, key_ptr, query_ptr, step_ptr, decay_ptr, segment_ptr, real_ptr, states_ptr, ends_ptr, dy_ptr, dx_ptr, dstep_ptr, ddecay_ptr,
    T, H, G, CHUNKS, P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, DOT: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Of x and step, and a chunk's share in that of decay. One program a chunk and head."""
    place = tl.program_id(0).to(tl.int64)
    b, c, h = place // (CHUNKS * H), place // H % CHUNKS, place % H
    start = c * Q
    real, step, sums, from_start, to_end, through, segment = _chunk(step_ptr, decay_ptr, segment_ptr, real_ptr, b, h, start, T, H, Q)
    at = tl.arange(0, Q)
    token = b * T + start + at
    of_key, of_value, inside = token * G + h // (H // G), token * H + h, start + at < T
    scores = tl.zeros((Q, Q), tl.float32)
    for first in range(0, N, BN):
        n = first + tl.arange(0, BN)
        scores += product(rows(query_ptr, of_key, real, n, N, N), tl.trans(rows(key_ptr, of_key, real, n, N, N)), DOT)
    weights = scores * _between(sums, segment, Q)
    slopes = tl.zeros((Q, Q), tl.float32)
    read, written, slope = tl.zeros((Q,), tl.float32), tl.zeros((Q,), tl.float32), tl.zeros((Q,), tl.float32)
    passed = tl.zeros((BP, BN), tl.float32)
    for p_first in range(0, P, BP):
        p = p_first + tl.arange(0, BP)
        x, dy = rows(x_ptr, of_value, real, p, P, P), rows(dy_ptr, of_value, real, p, P, P)
        values = x * step[:, None]
        slopes += product(dy, tl.trans(values), DOT)
        reads, writes = tl.zeros((Q, BP), tl.float32), tl.zeros((Q, BP), tl.float32)
        for n_first in range(0, N, BN):
            n = n_first + tl.arange(0, BN)
            state = rows(states_ptr, place * P + p, p < P, n, N, N)
            end = rows(ends_ptr, place * P + p, p < P, n, N, N)
            reads += product(rows(query_ptr, of_key, real, n, N, N), tl.trans(state), DOT)
            writes += product(rows(key_ptr, of_key, real, n, N, N), tl.trans(end), DOT)
            passed += state * end
        writes *= to_end[:, None]
        dvalues = product(tl.trans(weights), dy, DOT) + writes
        read += from_start * tl.sum(reads * dy, 1)
        written += tl.sum(writes * values, 1)
        slope += tl.sum(dvalues * x, 1)
        put_rows(dx_ptr, dvalues * step[:, None], of_value, inside, p, P, P)
    pairs = tl.where(at[:, None] > at[None, :], weights * slopes, 0.0)
    before = tl.cumsum(pairs, 1) - pairs  # of row i and column k: the pairs with j < k
    change = tl.sum(tl.where(at[:, None] >= at[None, :], before, 0.0), 0)
    change += tl.cumsum(read, 0, reverse=True) + (tl.cumsum(written, 0) - written) + through * tl.sum(passed)
    change = tl.where(real, change, 0.0)
    tl.store(dstep_ptr + of_value, tl.where(real, slope + change * tl.load(decay_ptr + h), 0.0), mask=inside)
    tl.store(ddecay_ptr + place, tl.sum(change * step))


@tuned(*_CHOICES, key=["P", "N", "Q", "DOT"])
@triton.jit
def _group_gradients(
    x_ptr, key_ptr, query_ptr, step_ptr, decay_ptr, segment_ptr, real_ptr, states_ptr, ends_ptr, dy_ptr, dkey_ptr, dquery_ptr,
    T, H, G, CHUNKS, P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, DOT: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Of keys and queries. One program a chunk, group of heads and block of state channels."""
    pid = tl.program_id(0).to(tl.int64)
    b, c, g = pid // (CHUNKS * G), pid // G % CHUNKS, pid % G
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    start = c * Q
    at = start + tl.arange(0, Q)
    token = b * T + at
    dkeys, dqueries = tl.zeros((Q, BN), tl.float32), tl.zeros((Q, BN), tl.float32)
    for h in range(g * (H // G), (g + 1) * (H // G)):
        place = (b * CHUNKS + c) * H + h
        real, step, sums, from_start, to_end, through, segment = _chunk(step_ptr, decay_ptr, segment_ptr, real_ptr, b, h, start, T, H, Q)
        of_value = token * H + h
        slopes, written, read = tl.zeros((Q, Q), tl.float32), tl.zeros((Q, BN), tl.float32), tl.zeros((Q, BN), tl.float32)
        for first in range(0, P, BP):
            p = first + tl.arange(0, BP)
            values, dy = rows(x_ptr, of_value, real, p, P, P) * step[:, None], rows(dy_ptr, of_value, real, p, P, P)
            slopes += product(dy, tl.trans(values), DOT)
            read += product(dy, rows(states_ptr, place * P + p, p < P, n, N, N), DOT)
            written += product(values, rows(ends_ptr, place * P + p, p < P, n, N, N), DOT)
        slopes *= _between(sums, segment, Q)
        keys, queries = rows(key_ptr, token * G + g, real, n, N, N), rows(query_ptr, token * G + g, real, n, N, N)
        dqueries += product(slopes, keys, DOT) + from_start[:, None] * read
        dkeys += product(tl.trans(slopes), queries, DOT) + to_end[:, None] * written
    put_rows(dkey_ptr, dkeys, token * G + g, at < T, n, N, N)
    put_rows(dquery_ptr, dqueries, token * G + g, at < T, n, N, N)


class _Ssd(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        decay: Tensor,
        key: Tensor,
        query: Tensor,
        state: Tensor | None,
        segment: Tensor,
        real: Tensor,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        inputs = (x, step, decay, key, query, segment, real)
        states, last = _states(x, key, step, decay, segment, real, state, chunk, False)
        sizes, options = _sizes(x, key, chunk)
        b, t, heads, p = x.shape
        y = torch.empty_like(x)
        _outputs[lambda c: (b * sizes[3] * heads, triton.cdiv(p, c["BP"]))](
            x, key, query, step, decay, segment, real, states, y, *sizes, **options
        )
        ctx.save_for_backward(*inputs, state)
        ctx.chunk = chunk
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Any, ...]:
        x, step, decay, key, query, segment, real, state = ctx.saved_tensors
        dy = torch.zeros_like(x) if dy is None else dy.contiguous()
        dlast = None if dlast is None else dlast.float().contiguous()
        states, _ = _states(x, key, step, decay, segment, real, state, ctx.chunk, False)
        ends, dstate = _states(dy, query, step, decay, segment, real, dlast, ctx.chunk, True)
        sizes, options = _sizes(x, key, ctx.chunk)
        (b, _, heads, _), chunks, (groups, n) = x.shape, sizes[3], key.shape[2:]
        dx, dstep, ddecay = torch.empty_like(x), torch.empty_like(step), step.new_empty(b, chunks, heads)
        dkey, dquery = torch.empty_like(key), torch.empty_like(query)
        given = (x, key, query, step, decay, segment, real, states, ends, dy)
        _head_gradients[lambda c: (b * chunks * heads,)](*given, dx, dstep, ddecay, *sizes, **options)
        _group_gradients[lambda c: (b * chunks * groups, triton.cdiv(n, c["BN"]))](*given, dkey, dquery, *sizes, **options)
        return dx, dstep, ddecay.sum((0, 1)), dkey, dquery, None if state is None else dstate, None, None, None


def _sizes(x: Tensor, key: Tensor, chunk: int) -> tuple[tuple[int, int, int, int], dict[str, Any]]:
    (_, t, heads, p), (groups, n) = x.shape, key.shape[2:]
    return (t, heads, groups, triton.cdiv(t, chunk)), {"P": p, "N": n, "Q": chunk, "DOT": operands(x.dtype)}


def _states(
    values: Tensor, keys: Tensor, step: Tensor, decay: Tensor, segment: Tensor, real: Tensor, begin: Tensor | None, chunk: int, back: bool
) -> tuple[Tensor, Tensor]:
    """The states before all chunks [b, c, h, p, n] and that after the last; backwards their gradients after all and before the first."""
    sizes, options = _sizes(values, keys, chunk)
    (b, _, heads, p), chunks, n = values.shape, sizes[3], keys.shape[3]
    states, through = step.new_empty(b, chunks, heads, p, n), step.new_empty(b, chunks, heads)
    last = step.new_empty(b, heads, p, n)
    _add[lambda c: (b * chunks * heads, triton.cdiv(p, c["BP"]) * triton.cdiv(n, c["BN"]))](
        values, keys, step, decay, segment, real, states, through, *sizes, BACK=back, **options
    )
    block = min(1024, triton.next_power_of_2(p * n))
    _pass_on[b * heads, triton.cdiv(p * n, block)](states, through, begin, last, heads, chunks, p * n, BACK=back, BLOCK=block)
    return states, last


def ssd_triton(given: Ssd) -> tuple[Tensor, Tensor]:
    """The chunks as Triton programs, of the power of two below chunk_size, 16 to 64 tokens: more do not fit into registers."""
    x_bthp, step_bth, decay_h, key_btgn, query_btgn, document_bt, state_bhpn, continues_b, chunk_size = given
    (b, _, heads, p), n, dtype = x_bthp.shape, key_btgn.shape[3], x_bthp.dtype
    state = None if state_bhpn is None else state_bhpn.float().contiguous()
    if x_bthp.numel() * n == 0:
        return torch.zeros_like(x_bthp), x_bthp.new_zeros(b, heads, p, n, dtype=torch.float32) if state is None else state
    known = documents(document_bt)
    y, last = _Ssd.apply(
        x_bthp.contiguous(),
        step_bth.float().contiguous(),
        decay_h.float().contiguous(),
        key_btgn.to(dtype).contiguous(),
        query_btgn.to(dtype).contiguous(),
        state,
        known.segment_after(continues_b).int().contiguous(),
        known.real.to(torch.int8).contiguous(),
        min(64, max(16, 1 << (chunk_size.bit_length() - 1))),
    )
    return y, last
