"""The running softmax on a GPU: one program a block of channels of a row, tokens one after the other, in the equations of `fast.cpp`.

Axes: b rows   t tokens   i channels
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
from mmlm.kernels.running_softmax.reference import RunningSoftmax

_CHANNELS = 64


@triton.jit
def _forward(logits_ptr, initial_ptr, kind_ptr, weight_ptr, decay_ptr, last_ptr, T, C, BC: tl.constexpr):
    blocks = tl.cdiv(C, BC)
    b = tl.program_id(0).to(tl.int64) // blocks
    channel = tl.program_id(0) % blocks * BC + tl.arange(0, BC)
    inside = channel < C
    z, lost = tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32)
    if initial_ptr is not None:
        z = tl.load(initial_ptr + b * C + channel, mask=inside, other=0.0)
    for t in range(T):
        kind = tl.load(kind_ptr + b * T + t)  # 0 padding, 1 inside a document, 2 its first token
        place = (b * T + t) * C + channel
        logits = tl.load(logits_ptr + place, mask=inside & (kind > 0), other=0.0).to(tl.float32)
        d = logits - z
        grown = softplus(d)
        step = grown - lost
        now = z + step
        weight = tl.where(kind == 1, tl.exp(d - grown), tl.where(kind == 2, 1.0, 0.0))
        tl.store(weight_ptr + place, weight, mask=inside)
        tl.store(decay_ptr + place, tl.where(kind == 1, -grown, 0.0), mask=inside)
        lost = tl.where(kind == 1, (now - z) - step, tl.where(kind == 2, 0.0, lost))
        z = tl.where(kind == 1, now, tl.where(kind == 2, logits, z))
    tl.store(last_ptr + b * C + channel, z, mask=inside)


@triton.jit
def _backward(
    kind_ptr, weight_ptr, decay_ptr, dweight_ptr, ddecay_ptr, dlast_ptr, dlogits_ptr, dinitial_ptr, T, C, BC: tl.constexpr
):  # fmt: skip
    blocks = tl.cdiv(C, BC)
    b = tl.program_id(0).to(tl.int64) // blocks
    channel = tl.program_id(0) % blocks * BC + tl.arange(0, BC)
    inside = channel < C
    r = tl.zeros((BC,), tl.float32)  # the gradient of z from this token on
    if dlast_ptr is not None:
        r = tl.load(dlast_ptr + b * C + channel, mask=inside, other=0.0)
    for back in range(T):
        t = T - 1 - back
        kind = tl.load(kind_ptr + b * T + t)
        place = (b * T + t) * C + channel
        used = inside & (kind == 1)
        weight, decay = tl.load(weight_ptr + place, mask=used, other=0.0), tl.load(decay_ptr + place, mask=used, other=0.0)
        dweight, ddecay = tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32)
        if dweight_ptr is not None:
            dweight = tl.load(dweight_ptr + place, mask=used, other=0.0)
        if ddecay_ptr is not None:
            ddecay = tl.load(ddecay_ptr + place, mask=used, other=0.0)
        now = r - weight * dweight - ddecay
        dlogits = tl.where(kind == 1, weight * (dweight + now), tl.where(kind == 2, r, 0.0))
        tl.store(dlogits_ptr + place, dlogits.to(dlogits_ptr.dtype.element_ty), mask=inside)
        r = tl.where(kind == 1, tl.exp(decay) * now + ddecay, tl.where(kind == 2, 0.0, r))
    if dinitial_ptr is not None:
        tl.store(dinitial_ptr + b * C + channel, r, mask=inside)


class _RunningSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, state: Tensor | None, kind: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, t, i = logits.shape
        weight, decay = (torch.empty_like(logits, dtype=torch.float32) for _ in range(2))
        last = weight.new_empty(b, i)
        _forward[(b * triton.cdiv(i, _CHANNELS),)](logits, state, kind, weight, decay, last, t, i, BC=_CHANNELS)
        ctx.save_for_backward(kind, weight, decay)
        ctx.dtype, ctx.continued = logits.dtype, state is not None
        ctx.set_materialize_grads(False)
        return weight, decay, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        kind, weight, decay = ctx.saved_tensors
        b, t, i = weight.shape
        dlogits, dstate = torch.empty_like(weight, dtype=ctx.dtype), weight.new_empty(b, i) if ctx.continued else None
        given = (None if g is None else g.contiguous() for g in grads)
        _backward[(b * triton.cdiv(i, _CHANNELS),)](kind, weight, decay, *given, dlogits, dstate, t, i, BC=_CHANNELS)
        return dlogits, dstate, None


def running_softmax_triton(given: RunningSoftmax) -> tuple[Tensor, Tensor, Tensor]:
    """One pass over the tokens, and one back."""
    logits, state = given.logits_bti, in_rows(given.state_bi, torch.float32)
    if logits.numel() == 0:
        b, _, i = logits.shape
        return logits.float(), logits.float(), logits.new_zeros(b, i, dtype=torch.float32) if state is None else state
    weight, decay, last = _RunningSoftmax.apply(logits.contiguous(), state, kinds(documents(given.document_bt), given.continues_b))
    return weight, decay, last
