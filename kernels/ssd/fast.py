"""The Mamba-2 recurrence in chunks of matrix products (arXiv:2405.21060, section 6).

Inside a chunk, with s the running sum of step * decay and X = step * x:
    y = ((query key^T) o M) X + exp(s) query h,   M_ij = exp(s_i - s_j) for i >= j in one document, else 0
and from chunk to chunk
    h <- exp(s_last) h + sum_j exp(s_last - s_j) X_j key_j^T
with tokens j of the chunk's last document, the first term only where no document begins in the chunk. A decay of -1e4 at a border, often
seen, would cost the sum s its digits. s, M and h are float32.

Axes: b rows   t tokens   h heads   p channels of a head   g groups of heads   r heads of a group   n state channels
c chunks   q, k tokens of a chunk
"""

from __future__ import annotations

import ctypes
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.base.errors import RecipeError
from mmlm.kernels import native
from mmlm.kernels.dispatch import GPU_FLOATS, check_shapes, on_gpu, run
from mmlm.kernels.documents import continuing, documents
from mmlm.kernels.native import address, letters
from mmlm.kernels.recurrence import borders, exact_type, in_rows, register_recurrence, without_padding
from mmlm.kernels.ssd import installed
from mmlm.kernels.ssd.reference import Ssd, ssd_reference


def ssd(
    x_bthp: Tensor,
    step_bth: Tensor,
    decay_h: Tensor,
    key_btgn: Tensor,
    query_btgn: Tensor,
    document_bt: Tensor,
    state_bhpn: Tensor | None = None,
    *,
    continues: Tensor | None = None,
    chunk_size: int = 64,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """y [b, t, h, p] in the dtype of x, and the state [b, h, p, n] after the last token, in float32 (float64 for float64 inputs).

    step: positive time steps. decay: negative. document: [b, t], 0 for padding, which leaves the state as it is and gives y = 0.
    state: what precedes the rows; it belongs to the first document of those rows where continues [b] is true (default: all).
    chunk_size: tokens of a block of the torch form; speed only.
    Raises RecipeError where shapes do not fit or the back end asked for cannot serve.
    """
    if x_bthp.ndim != 4 or key_btgn.ndim != 4:
        raise RecipeError(f"ssd: x and key have 4 axes, but are {list(x_bthp.shape)} and {list(key_btgn.shape)}.")
    (b, t, heads, p), (groups, n) = x_bthp.shape, key_btgn.shape[2:]
    if heads % groups:
        raise RecipeError(f"ssd: {heads} heads cannot share {groups} groups evenly; heads must be a multiple of groups.")
    wanted = {
        "step": (step_bth, (b, t, heads)),
        "decay": (decay_h, (heads,)),
        "key": (key_btgn, (b, t, groups, n)),
        "query": (query_btgn, (b, t, groups, n)),
        "document": (document_bt, (b, t)),
        "state": (state_bhpn, (b, heads, p, n)),
    }
    check_shapes("ssd", f"x {list(x_bthp.shape)} and key {list(key_btgn.shape)}", wanted)
    tensors = (x_bthp, step_bth, decay_h, key_btgn, query_btgn)
    return run("ssd", backend, *Ssd(*tensors, document_bt, state_bhpn, continuing(continues, state_bhpn), chunk_size))


def ssd_chunked(given: Ssd) -> tuple[Tensor, Tensor]:
    """The chunked form. Products are in the dtype of x on a GPU; on a CPU, where bfloat16 gains 6 %, in float32."""
    x_bthp, step_bth, decay_h, key_btgn, query_btgn, document_bt, state_bhpn, continues_b, chunk_size = given
    b, t, heads, p = x_bthp.shape
    groups, n = key_btgn.shape[2:]
    exact = exact_type(x_bthp, step_bth)
    fast = exact if x_bthp.device.type == "cpu" else x_bthp.dtype
    state = x_bthp.new_zeros(b, heads, p, n, dtype=exact) if state_bhpn is None else state_bhpn.to(exact)
    if b * t == 0:
        return x_bthp.clone(), state
    known = documents(document_bt)
    size = min(chunk_size, t)
    chunks, short = -(-t // size), -t % size

    x, step, key, query = without_padding(known, x_bthp, step_bth, key_btgn, query_btgn)
    step = step.to(exact)
    x, key, query = x.to(fast) * step[..., None].to(fast), key.to(fast), query.to(fast)
    if short:
        x, key, query = (F.pad(part, (0, 0, 0, 0, 0, short)) for part in (x, key, query))
        step = F.pad(step, (0, 0, 0, short))
    # [b, c, g, r or nothing, q, channels]
    x = x.view(b, chunks, size, groups, -1, p).permute(0, 1, 3, 4, 2, 5)
    key, query = (part.view(b, chunks, size, groups, n).transpose(2, 3) for part in (key, query))
    sums = (step * decay_h.to(exact)).view(b, chunks, size, groups, -1).permute(0, 1, 3, 4, 2).cumsum(-1)  # [b, c, g, r, q]

    border = borders(known, continues_b, size)
    visible = torch.ones(size, size, dtype=torch.bool, device=x.device).tril() if border is None else border.visible[:, :, None, None]
    difference = sums[..., :, None] - sums[..., None, :]
    mask = difference.masked_fill(~visible, -torch.inf).exp()  # [b, c, g, r, q, k]
    scores = query @ key.transpose(-1, -2)  # [b, c, g, q, k]
    y = (scores[:, :, :, None] * mask).to(fast) @ x  # [b, c, g, r, q, p]

    last = sums[..., -1:]
    to_end = (last - sums).exp()  # [b, c, g, r, q]
    if border is not None:
        to_end = to_end * border.in_last[:, :, None, None]
    added = (x * to_end[..., None].to(fast)).transpose(-1, -2).flatten(3, 4) @ key  # [b, c, g, r p, n]
    added = added.to(exact).unflatten(3, (-1, p))
    through = last[..., None].exp()  # [b, c, g, r, 1, 1]
    if border is not None:
        through = through * border.passes[..., None, None, None, None]
    held, state = [], state.view(b, groups, -1, p, n)
    for c in range(chunks):
        held.append(state)
        state = torch.addcmul(added[:, c], state, through[:, c])
    states = torch.stack(held, dim=1).to(fast).flatten(3, 4)  # [b, c, g, r p, n]
    carried = (query @ states.transpose(-1, -2)).unflatten(-1, (-1, p)).transpose(3, 4)
    weight = sums.exp()
    if border is not None:
        weight = weight * border.reached[:, :, None, None]
    y = y + carried * weight[..., None].to(fast)
    y = y.permute(0, 1, 4, 2, 3, 5).reshape(b, chunks * size, heads, p)[:, :t]
    if not known.plain:
        y = torch.where(known.real[..., None, None], y, 0)
    return y.to(x_bthp.dtype), state.reshape(b, heads, p, n)


_POINTER, _SIZE = native.ADDRESS, native.SIZE
_FORWARD = [*[_POINTER] * 10, *[_SIZE] * 6, ctypes.c_int]
_BACKWARD = [*[_POINTER] * 16, *[_SIZE] * 7, ctypes.c_int]
_library = native.Library(Path(__file__).parent / "fast.cpp", native.for_each_type(forward=_FORWARD, backward=_BACKWARD))


class _Ssd(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_bthp: Tensor,
        step_bth: Tensor,
        decay_h: Tensor,
        key_btgn: Tensor,
        query_btgn: Tensor,
        state_bhpn: Tensor | None,
        document_bt: Tensor,
        continues_b: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        (b, t, heads, p), (groups, n) = x_bthp.shape, key_btgn.shape[2:]
        sizes = (b, t, heads, p, groups, n)
        y, last = torch.empty(x_bthp.shape, dtype=x_bthp.dtype), torch.empty(b, heads, p, n)
        inputs = (x_bthp, step_bth, decay_h, key_btgn, query_btgn, document_bt, continues_b, state_bhpn)
        threads = min(native.threads(_seconds(sizes)), b * heads)
        getattr(_library(), f"forward_{letters(x_bthp)}")(*map(address, (*inputs, y, last)), *sizes, threads)
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Any, ...]:
        inputs = ctx.saved_tensors
        x, step, decay, key, _, _, _, state = inputs
        (b, t, heads, p), (groups, n) = x.shape, key.shape[2:]
        sizes = (b, t, heads, p, groups, n)
        dy = torch.zeros_like(x) if dy is None else dy.contiguous()
        dlast = None if dlast is None else dlast.float().contiguous()
        threads = native.threads(4 * _seconds(sizes))
        shares = min(-(-threads // max(b * groups, 1)), heads // groups)
        dx, dstep, ddecay = torch.empty_like(x), torch.empty_like(step), torch.empty(b, heads)
        dkey, dquery = torch.zeros(2, shares, *key.shape)
        dstate = None if state is None else torch.empty_like(state)
        getattr(_library(), f"backward_{letters(x)}")(
            *map(address, (*inputs, dy, dlast, dx, dstep, ddecay, dkey, dquery, dstate)), *sizes, shares, threads
        )
        return dx, dstep, ddecay.sum(0), dkey.sum(0).to(key.dtype), dquery.sum(0).to(key.dtype), dstate, None, None


def _seconds(sizes: tuple[int, ...]) -> float:
    b, t, heads, p, _, n = sizes
    return b * t * heads * p * n * 5e-11


def ssd_native(given: Ssd) -> tuple[Tensor, Tensor]:
    """The recurrence itself in C++. Nothing but the inputs is kept for the backward pass, which goes through the states again."""
    dtype = given.x_bthp.dtype
    y, last = _Ssd.apply(
        in_rows(given.x_bthp, dtype),
        in_rows(given.step_bth, torch.float32),
        in_rows(given.decay_h, torch.float32),
        in_rows(given.key_btgn, dtype),
        in_rows(given.query_btgn, dtype),
        in_rows(given.state_bhpn, torch.float32),
        in_rows(given.document_bt, torch.int32),
        in_rows(given.continues_b, torch.bool),
    )
    return y, last


register_recurrence(
    "ssd",
    Ssd,
    reference=ssd_reference,
    chunked=ssd_chunked,
    compiled=ssd_native,
    library=_library,
    triton="mmlm.kernels.ssd.triton:ssd_triton",
    serves=partial(on_gpu, dtypes=GPU_FLOATS),
    package=("mamba-ssm", installed.ssd_mamba_ssm, installed.serves),
)
