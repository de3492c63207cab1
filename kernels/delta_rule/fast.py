"""The delta rule in chunks (the WY form of arXiv:2406.06484, section 3.2, with the decay of arXiv:2412.06464), and as C++.

Inside a chunk, with s the running sum of decays, E_ij = exp(s_i - s_j) for i >= j in one document, else 0, and S the state before it:
    A = strictly lower part of beta (key key^T) o E;   (I + A) [U | W] = beta [value | exp(s) key];   V = U - W S
    y = exp(s) query S + ((query key^T) o E) V
and from chunk to chunk
    S <- exp(s_last) S + sum_j exp(s_last - s_j) key_j V_j^T
with tokens j of the chunk's last document; rows of W and the first terms only where no document has begun. s, E, the triangular system and
S are float32. Powers of A instead of substitution would lose all digits where keys repeat and beta nears 2.

Axes: b rows   t tokens   g groups of heads that share query and key   h heads   r heads of a group   k key channels   v value channels
c chunks   i, j tokens of a chunk
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.base.errors import RecipeError
from mmlm.kernels import native
from mmlm.kernels.delta_rule import installed
from mmlm.kernels.delta_rule.reference import DeltaRule, delta_rule_reference
from mmlm.kernels.dispatch import check_shapes, run
from mmlm.kernels.documents import continuing, documents
from mmlm.kernels.native import address, letters
from mmlm.kernels.recurrence import borders, exact_type, in_rows, keys_on_gpu, register_recurrence, without_padding


def delta_rule(
    query_btgk: Tensor,
    key_btgk: Tensor,
    value_bthv: Tensor,
    beta_bth: Tensor,
    decay_bth: Tensor | None,
    document_bt: Tensor,
    state_bhkv: Tensor | None = None,
    *,
    continues: Tensor | None = None,
    chunk_size: int = 64,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """y [b, t, h, v] in the dtype of value, and the state [b, h, k, v] after the last token, in float32 (float64 for float64 inputs).

    key: of length 1, as beta up to 2 then keeps the state bounded; query: with its scale. beta: how much of the old value is replaced.
    decay: logarithm of the factor on the state before a token is taken in, at most 0; None for none. document: [b, t], 0 for padding,
    which leaves the state as it is and gives y = 0. state: what precedes the rows; it belongs to the first document of those rows where
    continues [b] is true (default: all). chunk_size: tokens of a block of the torch form; speed only.
    Raises RecipeError where shapes do not fit or the back end asked for cannot serve.
    """
    tensors = (query_btgk, key_btgk, value_bthv, beta_bth, decay_bth)
    given = DeltaRule(*tensors, document_bt, state_bhkv, continuing(continues, state_bhkv), chunk_size)
    _check(given)
    return run("delta_rule", backend, *given)


def _check(given: DeltaRule) -> None:
    key, value = given.key_btgk, given.value_bthv
    if key.ndim != 4 or value.ndim != 4:
        raise RecipeError(f"delta_rule: key and value have 4 axes, but are {list(key.shape)} and {list(value.shape)}.")
    (b, t, heads, v), (groups, k) = value.shape, key.shape[2:]
    if groups == 0 or heads % groups:
        raise RecipeError(f"delta_rule: {heads} value heads cannot share {groups} key heads evenly; give a multiple of the key heads.")
    wanted = {
        "query": (given.query_btgk, (b, t, groups, k)),
        "key": (key, (b, t, groups, k)),
        "beta": (given.beta_bth, (b, t, heads)),
        "decay": (given.decay_bth, (b, t, heads)),
        "document": (given.document_bt, (b, t)),
        "state": (given.state_bhkv, (b, heads, k, v)),
    }
    check_shapes("delta_rule", f"key {list(key.shape)} and value {list(value.shape)}", wanted)
    if given.chunk_size < 1:
        raise RecipeError(f"delta_rule: chunk_size must be at least 1, but is {given.chunk_size}.")


def delta_rule_chunked(given: DeltaRule) -> tuple[Tensor, Tensor]:
    """The chunked form by matrix products and one triangular solve."""
    query_btgk, key_btgk, value_bthv, beta_bth, decay_bth, document_bt, state_bhkv, continues_b, chunk_size = given
    b, t, heads, v = value_bthv.shape
    groups, k = key_btgk.shape[2:]
    exact = exact_type(value_bthv, beta_bth)
    state = value_bthv.new_zeros(b, heads, k, v, dtype=exact) if state_bhkv is None else state_bhkv.to(exact)
    if b * t == 0:
        return value_bthv.clone(), state
    known = documents(document_bt)
    size = min(chunk_size, t)
    chunks, short = -(-t // size), -t % size

    def in_chunks(part: Tensor, of: int) -> Tensor:  # [b, t, g or h, channels] -> [b, c, g, 1 or r, size, channels]
        part = part.to(exact)
        part = F.pad(part, (0, 0, 0, 0, 0, short)) if short else part
        return part.reshape(b, chunks, size, groups, of, -1).permute(0, 1, 3, 4, 2, 5)

    query, key, value, beta, decay = without_padding(known, query_btgk, key_btgk, value_bthv, beta_bth, decay_bth)
    query, key, value = in_chunks(query, 1), in_chunks(key, 1), in_chunks(value, heads // groups)
    beta = in_chunks(beta[..., None], heads // groups)

    border = borders(known, continues_b, size)
    visible = torch.ones(size, size, dtype=torch.bool, device=key.device).tril() if border is None else border.visible[:, :, None, None]
    if decay is None:
        mask, from_start, to_end, through = visible.to(exact), None, None, None
    else:
        sums = in_chunks(decay[..., None], heads // groups).cumsum(-2)  # [b, c, g, r, size, 1]
        mask = (sums - sums.transpose(-1, -2)).masked_fill(~visible, -torch.inf).exp()
        last = sums[..., -1:, :]
        from_start, to_end, through = sums.exp(), (last - sums).exp(), last.exp()
    if border is not None:
        from_start = _times(from_start, border.reached[:, :, None, None, :, None])
        to_end = _times(to_end, border.in_last[:, :, None, None, :, None])
        through = _times(through, border.passes[..., None, None, None, None])

    system = beta * (key @ key.transpose(-1, -2)) * mask  # its diagonal is not read
    right = torch.cat([beta * value, (beta * key) if from_start is None else beta * from_start * key], dim=-1)
    solved = torch.linalg.solve_triangular(system.expand(*right.shape[:-1], size), right, upper=False, unitriangular=True)
    new, read = solved.split([v, k], dim=-1)
    written = (key if to_end is None else key * to_end).transpose(-1, -2).expand(b, chunks, groups, heads // groups, k, size)
    states, corrections = [], []
    state = state.reshape(b, groups, -1, k, v)
    for c in range(chunks):
        states.append(state)
        corrections.append(new[:, c] - read[:, c] @ state)
        added = written[:, c] @ corrections[-1]
        state = state + added if through is None else torch.addcmul(added, state, through[:, c])
    asked = query if from_start is None else query * from_start
    y = asked @ torch.stack(states, dim=1) + ((query @ key.transpose(-1, -2)) * mask) @ torch.stack(corrections, dim=1)
    y = y.permute(0, 1, 4, 2, 3, 5).reshape(b, chunks * size, heads, v)[:, :t]
    if not known.plain:
        y = torch.where(known.real[..., None, None], y, 0)
    return y.to(value_bthv.dtype), state.reshape(b, heads, k, v)


def _times(factor: Tensor | None, where: Tensor) -> Tensor:
    """A factor, zero outside; None stands for one."""
    return where.float() if factor is None else factor * where


_POINTER, _SIZE = native.ADDRESS, native.SIZE
_FORWARD = [*[_POINTER] * 11, *[_SIZE] * 6, ctypes.c_int]
_BACKWARD = [*[_POINTER] * 17, *[_SIZE] * 7, ctypes.c_int]
_library = native.Library(Path(__file__).parent / "fast.cpp", native.for_each_type(forward=_FORWARD, backward=_BACKWARD))


class _DeltaRule(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_btgk: Tensor,
        key_btgk: Tensor,
        value_bthv: Tensor,
        beta_bth: Tensor,
        decay_bth: Tensor | None,
        state_bhkv: Tensor | None,
        document_bt: Tensor,
        continues_b: Tensor | None,
        keeps: bool,
    ) -> tuple[Tensor, Tensor]:
        (b, t, heads, v), (groups, k) = value_bthv.shape, key_btgk.shape[2:]
        sizes = (b, t, heads, k, groups, v)
        y, last = torch.empty_like(value_bthv), torch.empty(b, heads, k, v)
        errors = torch.empty(b, t, heads, v) if keeps else None  # value - S^T key, of which the backward pass has need
        inputs = (query_btgk, key_btgk, value_bthv, beta_bth, decay_bth, document_bt, continues_b, state_bhkv)
        threads = min(native.threads(_seconds(sizes)), b * heads)
        getattr(_library(), f"forward_{letters(value_bthv)}")(*map(address, (*inputs, y, last, errors)), *sizes, threads)
        ctx.save_for_backward(*inputs, errors)
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Any, ...]:
        query, key, value, beta, decay, document, continues, state, errors = ctx.saved_tensors
        (b, t, heads, v), (groups, k) = value.shape, key.shape[2:]
        sizes = (b, t, heads, k, groups, v)
        dy = torch.zeros_like(value) if dy is None else dy.contiguous()
        dlast = None if dlast is None else dlast.float().contiguous()
        threads = native.threads(3 * _seconds(sizes))
        shares = min(-(-threads // max(b * groups, 1)), heads // groups)
        dquery, dkey = torch.zeros(2, shares, *key.shape)
        dvalue, dbeta = torch.empty_like(value), torch.empty_like(beta)
        ddecay, dstate = (None if x is None else torch.empty_like(x) for x in (decay, state))
        inputs = (query, key, value, beta, decay, document, continues, state, errors, dy, dlast)
        outputs = (dquery, dkey, dvalue, dbeta, ddecay, dstate)
        getattr(_library(), f"backward_{letters(value)}")(*map(address, (*inputs, *outputs)), *sizes, shares, threads)
        dquery, dkey = (x[0].to(key.dtype) if shares == 1 else x.sum(0).to(key.dtype) for x in (dquery, dkey))
        return dquery, dkey, dvalue, dbeta, ddecay, dstate, None, None, None


def _seconds(sizes: tuple[int, ...]) -> float:
    b, t, heads, k, _, v = sizes
    return b * t * heads * k * v * 6e-11


def delta_rule_native(given: DeltaRule) -> tuple[Tensor, Tensor]:
    """The recurrence itself in C++. Beside the inputs the errors value - S^T key are kept for the backward pass, and no state."""
    dtype = given.value_bthv.dtype
    y, last = _DeltaRule.apply(
        in_rows(given.query_btgk, dtype),
        in_rows(given.key_btgk, dtype),
        in_rows(given.value_bthv, dtype),
        in_rows(given.beta_bth, torch.float32),
        in_rows(given.decay_bth, torch.float32),
        in_rows(given.state_bhkv, torch.float32),
        in_rows(given.document_bt, torch.int32),
        in_rows(given.continues_b, torch.bool),
        given.wants_gradients(),
    )
    return y, last


register_recurrence(
    "delta_rule",
    DeltaRule,
    reference=delta_rule_reference,
    chunked=delta_rule_chunked,
    compiled=delta_rule_native,
    library=_library,
    triton="mmlm.kernels.delta_rule.triton:delta_rule_triton",
    serves=keys_on_gpu,
    package=("flash-linear-attention", installed.delta_rule_fla, installed.serves),
)
