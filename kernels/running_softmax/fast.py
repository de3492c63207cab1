"""A softmax over all tokens so far, channel by channel: what each token adds and by what the sum before it shrinks (LightNet,
arXiv:2405.21022). The torch form joins neighbouring stretches in log2 steps.

Axes: b rows   t tokens   i channels
"""

from __future__ import annotations

import ctypes
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmlm.kernels import native
from mmlm.kernels.dispatch import GPU_FLOATS, check_shapes, on_gpu, run
from mmlm.kernels.documents import continuing, documents
from mmlm.kernels.native import address, letters
from mmlm.kernels.recurrence import exact_type, in_rows, kinds, register_recurrence
from mmlm.kernels.running_softmax.reference import RunningSoftmax, running_softmax_reference

_LOW = -1e30  # stands for the logarithm of nothing: differences of infinities are no numbers


def running_softmax(
    logits_bti: Tensor, document_bt: Tensor, state_bi: Tensor | None = None, *, continues: Tensor | None = None, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """weight and decay [b, t, i] and the state [b, i], in float32 (float64 for float64 inputs).

    With z the logarithm of the sum of exp(logits) of the document so far: weight = exp(logit - z), decay = z before - z (0 for the first
    token), state = z. So the sum over s of weight_s exp(sum of decays after s) x_s is the mean of x weighted by the softmax of all logits
    so far. document: [b, t], 0 for padding, whose weight and decay are 0. state: what precedes the rows; it belongs to the first document
    of those rows where continues [b] is true (default: all).
    Raises RecipeError where shapes do not fit or the back end asked for cannot serve.
    """
    b, t, channels = logits_bti.shape
    wanted = {"document": (document_bt, (b, t)), "state": (state_bi, (b, channels))}
    check_shapes("running_softmax", f"logits {list(logits_bti.shape)}", wanted)
    given = RunningSoftmax(logits_bti, document_bt, state_bi, continuing(continues, state_bi))
    return run("running_softmax", backend, *given)


def running_softmax_joined(given: RunningSoftmax) -> tuple[Tensor, Tensor, Tensor]:
    """The form that joins stretches, on any device."""
    logits_bti, document_bt, state_bi, continues_b = given
    b, t, channels = logits_bti.shape
    logits = logits_bti.to(exact_type(logits_bti))
    begin = logits.new_zeros(b, channels) if state_bi is None else state_bi.to(logits.dtype)
    if t == 0:
        return logits, logits, begin
    known = documents(document_bt)
    kind = kinds(known, continues_b)[..., None]
    segment = known.segment_after(continues_b)
    segment = torch.cat([segment.new_zeros(b, 1), segment], dim=1)[..., None]
    logits = torch.where(kind > 0, logits, _LOW)
    held = begin if state_bi is not None else torch.full_like(begin, _LOW)
    z, shift = torch.cat([held[:, None], logits], dim=1), 1
    while shift <= t:
        same = segment[:, shift:] == segment[:, :-shift]
        joined = torch.where(same, torch.logaddexp(z[:, shift:], torch.where(same, z[:, :-shift], _LOW)), z[:, shift:])
        z, shift = torch.cat([z[:, :shift], joined], dim=1), 2 * shift
    before, z = z[:, :-1], z[:, 1:]
    weight = torch.where(kind > 0, (logits - z).exp(), 0)
    decay = torch.where(kind == 1, before - z, 0)
    return weight, decay, torch.where(known.real.any(1)[:, None], z[:, -1], begin)


_POINTER, _SIZE = native.ADDRESS, native.SIZE
_FORWARD, _BACKWARD = [*[_POINTER] * 7, *[_SIZE] * 3, ctypes.c_int], [*[_POINTER] * 9, *[_SIZE] * 3, ctypes.c_int]
_library = native.Library(Path(__file__).parent / "fast.cpp", native.for_each_type(forward=_FORWARD, backward=_BACKWARD))


class _RunningSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_bti: Tensor, state_bi: Tensor | None, document_bt: Tensor, continues_b: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        b, t, i = logits_bti.shape
        weight, decay, last = torch.empty(b, t, i), torch.empty(b, t, i), torch.empty(b, i)
        tensors = (logits_bti, state_bi, document_bt, continues_b, weight, decay, last)
        getattr(_library(), f"forward_{letters(logits_bti)}")(*map(address, tensors), b, t, i, native.threads(b * t * i * 3e-9))
        ctx.save_for_backward(document_bt, continues_b, weight, decay)
        ctx.dtype, ctx.continued = logits_bti.dtype, state_bi is not None
        ctx.set_materialize_grads(False)
        return weight, decay, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dweight: Tensor | None, ddecay: Tensor | None, dlast: Tensor | None) -> tuple[Any, ...]:
        document, continues, weight, decay = ctx.saved_tensors
        b, t, i = weight.shape
        dweight, ddecay, dlast = (None if x is None else x.contiguous() for x in (dweight, ddecay, dlast))
        dlogits, dstate = torch.empty(b, t, i, dtype=ctx.dtype), torch.empty(b, i) if ctx.continued else None
        tensors = (document, continues, weight, decay, dweight, ddecay, dlast, dlogits, dstate)
        getattr(_library(), f"backward_{letters(dlogits)}")(*map(address, tensors), b, t, i, native.threads(b * t * i * 2e-9))
        return dlogits, dstate, None, None


def running_softmax_native(given: RunningSoftmax) -> tuple[Tensor, Tensor, Tensor]:
    """One pass over the tokens in C++, and one back."""
    weight, decay, last = _RunningSoftmax.apply(
        given.logits_bti.contiguous(),
        in_rows(given.state_bi, torch.float32),
        in_rows(given.document_bt, torch.int32),
        in_rows(given.continues_b, torch.bool),
    )
    return weight, decay, last


register_recurrence(
    "running_softmax",
    RunningSoftmax,
    reference=running_softmax_reference,
    chunked=running_softmax_joined,
    compiled=running_softmax_native,
    library=_library,
    triton="mmlm.kernels.running_softmax.triton:running_softmax_triton",
    serves=partial(on_gpu, dtypes=GPU_FLOATS),
)
