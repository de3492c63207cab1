"""The selective scan of Mamba with its time step, skip and gate (arXiv:2312.00752), in a few passes over memory.

Every channel has n states of its own with own decays, so there is no matrix form. The torch form goes through chunks of tokens: what enters
the states of a chunk, what they are multiplied with and what is read from them are one operation each, and only h <- a h + u is one a token
(on a CPU that took a third of the time of joining neighbouring stretches in log2 steps, which moves more memory). While training it keeps
the states between chunks and computes each chunk again in the backward pass. No form holds all states of a row at once.

Axes: b rows   t tokens   i channels   n state channels
"""

from __future__ import annotations

import ctypes
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmlm.kernels import native
from mmlm.kernels.dispatch import check_shapes, run
from mmlm.kernels.documents import continuing, documents
from mmlm.kernels.native import address, letters
from mmlm.kernels.recurrence import exact_type, in_rows, kinds, register_recurrence
from mmlm.kernels.selective_scan import installed
from mmlm.kernels.selective_scan.reference import SelectiveScan, selective_scan_reference

_CHUNK = 32  # tokens of a block of the torch form


def selective_scan(
    x_bti: Tensor,
    step_bti: Tensor,
    step_bias_i: Tensor,
    decay_in: Tensor,
    key_btn: Tensor,
    query_btn: Tensor,
    skip_i: Tensor,
    gate_bti: Tensor | None,
    document_bt: Tensor,
    state_bin: Tensor | None = None,
    *,
    continues: Tensor | None = None,
    negative: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """y [b, t, i] in the dtype of x, and the state [b, i, n] after the last token, in float32 (float64 for float64 inputs).

    step: time steps before bias and softplus. decay: negative. gate: y is multiplied with its SiLU; None for no gate.
    document: [b, t], 0 for padding, which leaves the state as it is and gives y = 0.
    state: what precedes the rows; it belongs to the first document of those rows where continues [b] is true (default: all).
    negative: a state is multiplied with 2 exp(step decay) - 1, within -1 and 1, instead of exp(step decay) (arXiv:2411.12537).
    Raises RecipeError where shapes do not fit or the back end asked for cannot serve.
    """
    b, t, i = x_bti.shape
    n = decay_in.shape[-1]
    wanted = {
        "step": (step_bti, (b, t, i)),
        "step_bias": (step_bias_i, (i,)),
        "decay": (decay_in, (i, n)),
        "key": (key_btn, (b, t, n)),
        "query": (query_btn, (b, t, n)),
        "skip": (skip_i, (i,)),
        "gate": (gate_bti, (b, t, i)),
        "document": (document_bt, (b, t)),
        "state": (state_bin, (b, i, n)),
    }
    check_shapes("selective_scan", f"x {list(x_bti.shape)} and decay {list(decay_in.shape)}", wanted)
    tensors = (x_bti, step_bti, step_bias_i, decay_in, key_btn, query_btn, skip_i, gate_bti)
    given = SelectiveScan(*tensors, document_bt, state_bin, continuing(continues, state_bin), negative)
    return run("selective_scan", backend, *given)


def selective_scan_chunked(given: SelectiveScan) -> tuple[Tensor, Tensor]:
    """The chunked form, on any device."""
    x_bti, step_bti, step_bias_i, decay_in, key_btn, query_btn, skip_i, gate_bti, document_bt, state_bin, continues_b, negative = given
    b, t, channels = x_bti.shape
    exact = exact_type(x_bti, decay_in)
    decay, bias, skip = (part.to(exact) for part in (decay_in, step_bias_i, skip_i))
    state = x_bti.new_zeros(b, channels, decay.shape[1], dtype=exact) if state_bin is None else state_bin.to(exact)
    real = fresh = None
    known = documents(document_bt)
    if t and not (known.plain and (continues_b is None or bool(continues_b.all()))):
        kind = kinds(known, continues_b)[..., None, None]
        real, fresh = kind > 0, kind == 2
    tensors = (x_bti, step_bti, key_btn, query_btn, gate_bti, real, fresh)
    again = t > _CHUNK and torch.is_grad_enabled() and not torch._C._functorch.is_functorch_wrapped_tensor(x_bti)
    outputs = []
    # split, whose backward is one concatenation: that of a slice is as large as the whole
    for parts in zip(*(repeat(None) if part is None else part.split(_CHUNK, dim=1) for part in tensors)) if t else ():
        rest: tuple[Any, ...] = (*parts, bias, decay, skip, state, negative)
        if again:
            y, state = checkpoint(_chunk, *rest, use_reentrant=False, preserve_rng_state=False)
        else:
            y, state = _chunk(*rest)
        outputs.append(y)
    return torch.cat(outputs, dim=1) if outputs else torch.zeros_like(x_bti), state


def _chunk(
    x_bti: Tensor,
    step_bti: Tensor,
    key_btn: Tensor,
    query_btn: Tensor,
    gate_bti: Tensor | None,
    real: Tensor | None,
    fresh: Tensor | None,
    bias_i: Tensor,
    decay_in: Tensor,
    skip_i: Tensor,
    state_bin: Tensor,
    negative: bool,
) -> tuple[Tensor, Tensor]:
    """y of one chunk and the state after it. real, fresh: bool [b, t, 1, 1], or None where no token is padding or begins a document."""
    exact = state_bin.dtype
    x = x_bti.to(exact)
    step = F.softplus(step_bti.to(exact) + bias_i)
    through = (step[..., None] * decay_in).exp()  # what the state is multiplied with, [b, t, i, n]
    if negative:
        through = 2 * through - 1
    enters = (step * x)[..., None] * key_btn.to(exact)[:, :, None]
    if real is not None and fresh is not None:
        through = through.masked_fill(fresh, 0).masked_fill(~real, 1)
        enters = enters.masked_fill(~real, 0)
    states = []
    for entering, factor in zip(enters.unbind(1), through.unbind(1)):
        state_bin = torch.addcmul(entering, factor, state_bin)
        states.append(state_bin)
    y = (torch.stack(states, dim=1) @ query_btn.to(exact)[..., None])[..., 0] + skip_i * x
    if gate_bti is not None:
        y = y * F.silu(gate_bti.to(exact))
    if real is not None:
        y = torch.where(real[..., 0], y, 0)
    return y.to(x_bti.dtype), state_bin


_POINTER, _SIZE = native.ADDRESS, native.SIZE
_SIZES = [*[_SIZE] * 6, native.REAL, _SIZE, ctypes.c_int]
_FORWARD, _BACKWARD = [*[_POINTER] * 14, *_SIZES], [*[_POINTER] * 23, *_SIZES]
_library = native.Library(
    Path(__file__).parent / "fast.cpp",
    {"kept": [_SIZE] * 4, **native.for_each_type(forward=_FORWARD, backward=_BACKWARD)},
    {"kept": _SIZE},
)


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
        document_bt: Tensor,
        continues_b: Tensor | None,
        negative: bool,
    ) -> tuple[Tensor, Tensor]:
        b, t, i = x_bti.shape
        n = decay_in.shape[1]
        y, last = torch.empty(x_bti.shape, dtype=x_bti.dtype), torch.empty(b, i, n)
        begins = torch.empty(_library().kept(b, t, i, n)) if any(ctx.needs_input_grad) else None
        gate_strides = (0, 0) if gate_bti is None else gate_bti.stride()[:2]
        inputs = (x_bti, step_bti, gate_bti, key_btn, query_btn, bias_i, decay_in, skip_i, state_bin, document_bt, continues_b, begins)
        sizes = (b, t, i, n, *gate_strides, float(negative))
        getattr(_library(), f"forward_{letters(x_bti)}")(*map(address, (*inputs, y, last)), *sizes, *_parts(sizes, 4e-10))
        ctx.save_for_backward(*inputs)
        ctx.sizes = sizes
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Any, ...]:
        inputs = ctx.saved_tensors
        x, step, gate, key, _, bias, decay, skip, state = inputs[:9]
        b = len(x)
        shares, threads = _parts(ctx.sizes, 1.2e-9)
        dy = torch.zeros_like(x) if dy is None else dy.contiguous()
        dlast = None if dlast is None else dlast.contiguous()
        dx, dstep, dgate = torch.empty_like(x), torch.empty_like(step), None if gate is None else torch.empty(x.shape, dtype=x.dtype)
        dbias, dskip, ddecay = torch.empty(b, *bias.shape), torch.empty(b, *skip.shape), torch.empty(b, *decay.shape)
        dkey, dquery = torch.zeros(2, shares, *key.shape)
        dstate = None if state is None else torch.empty_like(state)
        outputs = (dy, dlast, dx, dstep, dgate, dbias, ddecay, dkey, dquery, dskip, dstate)
        getattr(_library(), f"backward_{letters(x)}")(*map(address, (*inputs, *outputs)), *ctx.sizes, shares, threads)
        dkey, dquery = (part.sum(0).to(key.dtype) for part in (dkey, dquery))
        return dx, dstep, dgate, dkey, dquery, dbias.sum(0), ddecay.sum(0), dskip.sum(0), dstate, None, None, None


def _parts(sizes: tuple[Any, ...], seconds: float) -> tuple[int, int]:
    """Parts that the channels of a row are given out in, and threads. seconds: time of one state channel of one token."""
    b, t, i, n = sizes[:4]
    threads = native.threads(b * t * i * n * seconds)
    return max(1, min(-(-threads // max(b, 1)), -(-i // 16))), threads


def selective_scan_native(given: SelectiveScan) -> tuple[Tensor, Tensor]:
    """The recurrence in C++, the gate read as it lies (a slice of a wider projection need not be copied)."""
    dtype = given.x_bti.dtype
    gate = None if given.gate_bti is None else given.gate_bti.to(dtype)
    y, last = _SelectiveScan.apply(
        in_rows(given.x_bti, dtype),
        in_rows(given.step_bti, dtype),
        gate if gate is None or gate.stride(2) == 1 else gate.contiguous(),
        in_rows(given.key_btn, dtype),
        in_rows(given.query_btn, dtype),
        in_rows(given.step_bias_i, torch.float32),
        in_rows(given.decay_in, torch.float32),
        in_rows(given.skip_i, torch.float32),
        in_rows(given.state_bin, torch.float32),
        in_rows(given.document_bt, torch.int32),
        in_rows(given.continues_b, torch.bool),
        given.negative,
    )
    return y, last


register_recurrence(
    "selective_scan",
    SelectiveScan,
    reference=selective_scan_reference,
    chunked=selective_scan_chunked,
    compiled=selective_scan_native,
    library=_library,
    triton="mmlm.kernels.selective_scan.triton:selective_scan_triton",
    package=("mamba-ssm", installed.selective_scan_mamba_ssm, installed.serves),
)
