"""Gated linear attention with a decay for each key channel (arXiv:2312.06635), in chunks of matrix products and as C++.

Inside a chunk, with s the running sum of decays [.., tokens, key channels] and S the state before it:
    A_ij = sum over k of query_ik key_jk exp(s_ik - s_jk) for i >= j in one document, else 0
    y = A value + (query o exp(s)) S
and from chunk to chunk
    S <- exp(s_last) o S + sum_j (key_j o exp(s_last - s_j)) value_j^T
with tokens j of the chunk's last document; the terms with S only where no document has begun. Every exponent is a difference that is not
above zero: query exp(s) times key exp(-s) would overflow where decays are strong, so A is summed channel by channel in short chunks.

Axes: b rows   t tokens   h heads   k key channels   v value channels   c chunks   i, j tokens of a chunk
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
from mmlm.kernels.dispatch import check_shapes, run
from mmlm.kernels.documents import continuing, documents
from mmlm.kernels.gla.reference import Gla, gla_reference
from mmlm.kernels.native import address, letters
from mmlm.kernels.recurrence import borders, exact_type, in_rows, keys_on_gpu, register_recurrence, without_padding

_CHUNK = 16  # tokens of a block of the torch form


def gla(
    query_bthk: Tensor,
    key_bthk: Tensor,
    value_bthv: Tensor,
    decay_bthk: Tensor,
    document_bt: Tensor,
    state_bhkv: Tensor | None = None,
    *,
    continues: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """y [b, t, h, v] in the dtype of value, and the state [b, h, k, v] after the last token, in float32 (float64 for float64 inputs).

    decay: logarithm of the factor on each key channel of the state before a token is taken in, at most 0. document: [b, t], 0 for padding,
    which leaves the state as it is and gives y = 0. state: what precedes the rows; it belongs to the first document of those rows where
    continues [b] is true (default: all).
    Raises RecipeError where shapes do not fit or the back end asked for cannot serve.
    """
    if key_bthk.ndim != 4 or value_bthv.ndim != 4:
        raise RecipeError(f"gla: key and value have 4 axes, but are {list(key_bthk.shape)} and {list(value_bthv.shape)}.")
    (b, t, heads, k), v = key_bthk.shape, value_bthv.shape[-1]
    wanted = {
        "query": (query_bthk, (b, t, heads, k)),
        "value": (value_bthv, (b, t, heads, v)),
        "decay": (decay_bthk, (b, t, heads, k)),
        "document": (document_bt, (b, t)),
        "state": (state_bhkv, (b, heads, k, v)),
    }
    check_shapes("gla", f"key {list(key_bthk.shape)}", wanted)
    given = Gla(query_bthk, key_bthk, value_bthv, decay_bthk, document_bt, state_bhkv, continuing(continues, state_bhkv))
    return run("gla", backend, *given)


def gla_chunked(given: Gla) -> tuple[Tensor, Tensor]:
    """The chunked form, on any device."""
    query_bthk, key_bthk, value_bthv, decay_bthk, document_bt, state_bhkv, continues_b = given
    (b, t, heads, k), v = key_bthk.shape, value_bthv.shape[-1]
    exact = exact_type(value_bthv, decay_bthk)
    state = value_bthv.new_zeros(b, heads, k, v, dtype=exact) if state_bhkv is None else state_bhkv.to(exact)
    if b * t == 0:
        return value_bthv.clone(), state
    known = documents(document_bt)
    size = min(_CHUNK, t)
    short = -t % size

    def in_chunks(part: Tensor) -> Tensor:  # [b, t, h, channels] -> [b, c, h, size, channels]
        part = F.pad(part.to(exact), (0, 0, 0, 0, 0, short)) if short else part.to(exact)
        return part.view(b, -1, size, heads, part.shape[-1]).transpose(2, 3)

    query, key, value, decay = map(in_chunks, without_padding(known, query_bthk, key_bthk, value_bthv, decay_bthk))
    sums = decay.cumsum(-2)
    last = sums[..., -1:, :]
    from_start, to_end, through = sums.exp(), (last - sums).exp(), last.exp()
    border = borders(known, continues_b, size)
    visible = torch.ones(size, size, dtype=torch.bool, device=key.device).tril()
    if border is not None:
        visible = border.visible[:, :, None]
        from_start = from_start * border.reached[:, :, None, :, None]
        to_end = to_end * border.in_last[:, :, None, :, None]
        through = through * border.passes[..., None, None, None]
    between = (sums[..., :, None, :] - sums[..., None, :, :]).masked_fill(~visible[..., None], -torch.inf).exp()  # [b, c, h, i, j, k]
    scores = torch.einsum("bchik,bchijk,bchjk->bchij", query, between, key)
    added = (key * to_end).transpose(-1, -2) @ value  # [b, c, h, k, v]
    through = through.transpose(-1, -2)
    states = []
    for chunk, factor in zip(added.unbind(1), through.unbind(1)):
        states.append(state)
        state = torch.addcmul(chunk, factor, state)
    y = scores @ value + (query * from_start) @ torch.stack(states, dim=1)
    y = y.transpose(2, 3).reshape(b, -1, heads, v)[:, :t]
    if not known.plain:
        y = torch.where(known.real[..., None, None], y, 0)
    return y.to(value_bthv.dtype), state


_POINTER, _SIZE = native.ADDRESS, native.SIZE
_FORWARD = [*[_POINTER] * 9, *[_SIZE] * 5, ctypes.c_int]
_BACKWARD = [*[_POINTER] * 14, *[_SIZE] * 5, ctypes.c_int]
_library = native.Library(Path(__file__).parent / "fast.cpp", native.for_each_type(forward=_FORWARD, backward=_BACKWARD))


class _Gla(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_bthk: Tensor,
        key_bthk: Tensor,
        value_bthv: Tensor,
        decay_bthk: Tensor,
        state_bhkv: Tensor | None,
        document_bt: Tensor,
        continues_b: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        sizes = (*key_bthk.shape, value_bthv.shape[-1])
        b, _, heads, k, v = sizes
        y, last = torch.empty_like(value_bthv), torch.empty(b, heads, k, v)
        inputs = (query_bthk, key_bthk, value_bthv, decay_bthk, document_bt, continues_b, state_bhkv)
        threads = min(native.threads(_seconds(sizes)), b * heads)
        getattr(_library(), f"forward_{letters(value_bthv)}")(*map(address, (*inputs, y, last)), *sizes, threads)
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Any, ...]:
        inputs = ctx.saved_tensors
        query, key, value, decay, _, _, state = inputs
        sizes = (*key.shape, value.shape[-1])
        dy = torch.zeros_like(value) if dy is None else dy.contiguous()
        dlast = None if dlast is None else dlast.float().contiguous()
        outputs = [None if x is None else torch.empty_like(x) for x in (query, key, value, decay, state)]
        threads = min(native.threads(3 * _seconds(sizes)), sizes[0] * sizes[2])
        getattr(_library(), f"backward_{letters(value)}")(*map(address, (*inputs, dy, dlast, *outputs)), *sizes, threads)
        return *outputs, None, None


def _seconds(sizes: tuple[int, ...]) -> float:
    b, t, heads, k, v = sizes
    return b * t * heads * k * v * 5e-11


def gla_native(given: Gla) -> tuple[Tensor, Tensor]:
    """The recurrence itself in C++. Nothing but the inputs is kept for the backward pass, which goes through the states again."""
    dtype = given.value_bthv.dtype
    y, last = _Gla.apply(
        in_rows(given.query_bthk, dtype),
        in_rows(given.key_bthk, dtype),
        in_rows(given.value_bthv, dtype),
        in_rows(given.decay_bthk, torch.float32),
        in_rows(given.state_bhkv, torch.float32),
        in_rows(given.document_bt, torch.int32),
        in_rows(given.continues_b, torch.bool),
    )
    return y, last


register_recurrence(
    "gla",
    Gla,
    reference=gla_reference,
    chunked=gla_chunked,
    compiled=gla_native,
    library=_library,
    triton="mmlm.kernels.gla.triton:gla_triton",
    serves=keys_on_gpu,
)
