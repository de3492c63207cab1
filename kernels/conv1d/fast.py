"""Causal depthwise convolution with a carried state and document borders, as Mamba and its relatives use before the recurrence.

The torch form is one grouped convolution over the whole row; the few tokens that stand less than k - 1 places after a border are computed
again from their own document's inputs, so nothing of a neighbour is ever in them.

Axes: b rows   t tokens   c channels   k taps, the last one for the current token   m tokens after a border
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.base.errors import RecipeError
from mmlm.kernels import native
from mmlm.kernels.conv1d import installed
from mmlm.kernels.conv1d.reference import causal_conv1d_reference
from mmlm.kernels.dispatch import GPU_FLOATS, check_shapes, on_gpu, pointers, register, run
from mmlm.kernels.documents import continuing, documents, last_inputs
from mmlm.kernels.native import address, letters


def causal_conv1d(
    x_btc: Tensor,
    weight_ck: Tensor,
    bias_c: Tensor | None,
    document_bt: Tensor,
    state_bck: Tensor | None = None,
    activation: str | None = "silu",
    *,
    continues: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """y [b, t, c], zero at padding, and the last k - 1 inputs [b, c, k - 1] of each row's last document; both in the dtype of x.

    document: [b, t], 0 for padding, which is passed over. state: the inputs before the rows; they belong to the first document of those
    rows where continues [b] is true (default: all). activation: "silu" or None.
    Raises RecipeError for another activation, where shapes do not fit, or where the back end asked for cannot serve.
    """
    if activation not in ("silu", None):
        raise RecipeError(f"causal_conv1d: activation must be 'silu' or None, but is {activation!r}.")
    check_convolution("causal_conv1d", x_btc, weight_ck, bias_c, document_bt, state_bck)
    arguments = (x_btc, weight_ck, bias_c, document_bt, state_bck, continuing(continues, state_bck), activation)
    return run("causal_conv1d", backend, *arguments)


def check_convolution(
    op: str, x_btc: Tensor, weight_ck: Tensor, bias_c: Tensor | None, document_bt: Tensor, state_bck: Tensor | None
) -> None:
    """Raises RecipeError where shapes do not fit."""
    if x_btc.ndim != 3 or weight_ck.ndim != 2:
        raise RecipeError(f"{op}: x has 3 axes and its taps 2, but they are {list(x_btc.shape)} and {list(weight_ck.shape)}.")
    (b, t, channels), taps = x_btc.shape, weight_ck.shape[1]
    wanted = {
        "taps": (weight_ck, (channels, taps)),
        "bias": (bias_c, (channels,)),
        "document": (document_bt, (b, t)),
        "state": (state_bck, (b, channels, taps - 1)),
    }
    check_shapes(op, f"x {list(x_btc.shape)}", wanted)


def causal_conv1d_torch(
    x_btc: Tensor,
    weight_ck: Tensor,
    bias_c: Tensor | None,
    document_bt: Tensor,
    state_bck: Tensor | None = None,
    continues_b: Tensor | None = None,
    activation: str | None = "silu",
) -> tuple[Tensor, Tensor]:
    """One grouped convolution, then the tokens after borders anew."""
    return padding_last(_packed, x_btc, weight_ck, bias_c, document_bt, state_bck, continues_b, activation)


def padding_last(
    packed: Callable[..., tuple[Tensor, Tensor]], x_btc: Tensor, weight_ck: Tensor, bias_c: Tensor | None, document_bt: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    """A form that has need of the padding of a row behind its tokens, on any rows."""
    known = documents(document_bt)
    if known.padded_at_end:
        return packed(x_btc, weight_ck, bias_c, document_bt, *rest)
    order, back = known.order
    y, state = packed(_take(x_btc, order), weight_ck, bias_c, document_bt.gather(1, order), *rest)
    return _take(y, back), state


def ages(document_bt: Tensor, continues_b: Tensor | None, taps: int) -> Tensor:
    """int32 [b, t]: how many inputs precede a token in its document, at least k - 1 where carried ones do; -1 at padding, behind all."""
    known = documents(document_bt)
    segment = known.segment_after(continues_b).contiguous()
    place = torch.arange(segment.shape[1], device=segment.device)
    age = place - torch.searchsorted(segment, segment) + torch.where(segment == 0, taps - 1, 0)
    return torch.where(known.real, age, -1).int()


def last_of_rows(x_btc: Tensor, age_bt: Tensor, state_bck: Tensor | None, taps: int) -> Tensor:
    """The last k - 1 inputs [b, c, k - 1] of each row's last document, those carried where the row has no token."""
    b, t, channels = x_btc.shape
    state = x_btc.new_zeros(b, channels, taps - 1) if state_bck is None else state_bck
    if t == 0 or taps == 1:
        return state
    count = (age_bt >= 0).sum(1, keepdim=True)
    back = torch.arange(taps - 1, 0, -1, device=x_btc.device)  # places before the next token
    at = count - back
    own = back <= torch.where(count > 0, age_bt.gather(1, (count - 1).clamp_min(0)).long() + 1, taps)
    new = x_btc.gather(1, at.clamp_min(0)[..., None].expand(-1, -1, channels)).transpose(1, 2)
    old = state.gather(2, (at + taps - 1).clamp_max(taps - 2)[:, None].expand(-1, channels, -1))
    return torch.where(own[:, None], torch.where((at >= 0)[:, None], new, old), 0)


def _take(x_btc: Tensor, place_bt: Tensor) -> Tensor:
    return x_btc.gather(1, place_bt[..., None].expand_as(x_btc))


def _packed(
    x_btc: Tensor,
    weight_ck: Tensor,
    bias_c: Tensor | None,
    document_bt: Tensor,
    state_bck: Tensor | None,
    continues_b: Tensor | None,
    activation: str | None,
) -> tuple[Tensor, Tensor]:
    b, t, channels = x_btc.shape
    past = weight_ck.shape[1] - 1
    weight, bias = weight_ck.to(x_btc.dtype), None if bias_c is None else bias_c.to(x_btc.dtype)
    before = x_btc.new_zeros(b, channels, past) if state_bck is None else state_bck.to(x_btc.dtype)
    whole = torch.cat([before, x_btc.transpose(1, 2)], dim=2)  # [b, c, past + t]
    known = documents(document_bt)
    if t == 0:
        return x_btc, before
    y = F.conv1d(whole, weight[:, None], bias, groups=channels)
    if known.plain and (continues_b is None or bool(continues_b.all())):
        return (F.silu(y) if activation else y).transpose(1, 2), whole[:, :, t:]

    segment = known.segment_after(continues_b)
    belongs = torch.cat([segment.new_zeros(b, past), segment], dim=1)  # segment of each column of `whole`
    windows = belongs.unfold(1, past + 1, 1)  # [b, t, k]
    row, place = (known.real & (windows[..., 0] != windows[..., -1])).nonzero(as_tuple=True)
    if len(row):
        taps = place[:, None] + torch.arange(past + 1, device=place.device)
        own = belongs[row[:, None], taps] == segment[row, place][:, None]
        inputs = torch.where(own[..., None], whole.transpose(1, 2)[row[:, None], taps], 0)  # [m, k, c]
        anew = (inputs * weight.T).sum(1)
        channel = torch.arange(channels, device=row.device)
        y = y.index_put((row[:, None], channel, place[:, None]), anew if bias is None else anew + bias)
    y = F.silu(y) if activation else y
    y = torch.where(known.real[:, None], y, 0).transpose(1, 2)
    return y, last_inputs(whole, known, segment)


MOST_TAPS = 256  # of the native form; with more, transforms are faster
MOST_TAPS_GPU = 32  # of the Triton form, whose programs are written out tap by tap

_POINTER, _SIZE = native.ADDRESS, native.SIZE
_SIZES = [ctypes.c_int, *[_SIZE] * 6, ctypes.c_int]
_FORWARD, _BACKWARD = [*[_POINTER] * 8, *_SIZES], [*[_POINTER] * 11, *_SIZES]
_library = native.Library(Path(__file__).parent / "fast.cpp", native.for_each_type(forward=_FORWARD, backward=_BACKWARD))


class _CausalConv1d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_btc: Tensor,
        weight_ck: Tensor,
        bias_c: Tensor | None,
        state_bck: Tensor | None,
        document_bt: Tensor,
        continues_b: Tensor | None,
        silu: bool,
    ) -> tuple[Tensor, Tensor]:
        (b, t, channels), taps = x_btc.shape, weight_ck.shape[1]
        weight_kc = weight_ck.detach().float().T.contiguous()
        bias = None if bias_c is None else bias_c.detach().float().contiguous()
        y = torch.empty(x_btc.shape, dtype=x_btc.dtype)
        last = torch.empty(b, channels, taps - 1, dtype=x_btc.dtype)
        inputs = (x_btc, weight_kc, bias, document_bt, state_bck, continues_b)
        sizes = (int(silu), b, t, channels, taps, x_btc.stride(0), x_btc.stride(1))
        threads = native.threads(x_btc.numel() * taps * 1.5e-10)
        getattr(_library(), f"forward_{letters(x_btc)}")(*map(address, (*inputs, y, last)), *sizes, threads)
        ctx.save_for_backward(*inputs)
        ctx.sizes, ctx.weight_dtype, ctx.bias_dtype = sizes, weight_ck.dtype, None if bias_c is None else bias_c.dtype
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Any, ...]:
        inputs = ctx.saved_tensors
        x, weight_kc, _, _, state, _ = inputs
        dx = torch.empty(x.shape, dtype=x.dtype)
        dy = torch.zeros_like(dx) if dy is None else dy.contiguous()
        dlast = None if dlast is None else dlast.contiguous()
        slopes = torch.empty(len(weight_kc) + 1, x.shape[2])
        dstate = None if state is None else torch.zeros_like(state)
        threads = native.threads(x.numel() * len(weight_kc) * 5e-10)
        getattr(_library(), f"backward_{letters(x)}")(*map(address, (*inputs, dy, dlast, dx, slopes, dstate)), *ctx.sizes, threads)
        dbias = None if ctx.bias_dtype is None else slopes[-1].to(ctx.bias_dtype)
        return dx, slopes[:-1].T.to(ctx.weight_dtype), dbias, dstate, None, None, None


def causal_conv1d_native(
    x_btc: Tensor,
    weight_ck: Tensor,
    bias_c: Tensor | None,
    document_bt: Tensor,
    state_bck: Tensor | None = None,
    continues_b: Tensor | None = None,
    activation: str | None = "silu",
) -> tuple[Tensor, Tensor]:
    """One pass in C++ over x as it lies (a slice of a wider projection need not be copied)."""
    y, last = _CausalConv1d.apply(
        x_btc if x_btc.stride(2) == 1 else x_btc.contiguous(),
        weight_ck,
        bias_c,
        None if state_bck is None else state_bck.to(x_btc.dtype).contiguous(),
        document_bt.to(torch.int32).contiguous(),
        None if continues_b is None else continues_b.contiguous(),
        activation == "silu",
    )
    return y, last


def causal_conv1d_triton(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Triton programs; triton is imported at the first call."""
    from mmlm.kernels.conv1d import triton

    return triton.causal_conv1d_triton(*arguments)


def causal_conv1d_installed(
    x_btc: Tensor,
    weight_ck: Tensor,
    bias_c: Tensor | None,
    document_bt: Tensor,
    state_bck: Tensor | None = None,
    continues_b: Tensor | None = None,
    activation: str | None = "silu",
) -> tuple[Tensor, Tensor]:
    """By the package causal-conv1d; the inputs that are kept are taken from x."""
    y = installed.convolve(x_btc, weight_ck, bias_c, document_bt, state_bck, activation)
    state = None if state_bck is None else state_bck.to(x_btc.dtype)
    return y, last_of_rows(x_btc, ages(document_bt, continues_b, weight_ck.shape[1]), state, weight_ck.shape[1])


def _serves_triton(*arguments: Any) -> str | None:
    if arguments and (taps := arguments[1].shape[1]) > MOST_TAPS_GPU:
        return f"{taps} taps are more than {MOST_TAPS_GPU}"
    return on_gpu(*arguments, dtypes=GPU_FLOATS)


def _serves(*arguments: Any) -> str | None:
    if arguments and (taps := arguments[1].shape[1]) > MOST_TAPS:
        return f"{taps} taps are more than {MOST_TAPS}"
    return pointers(*arguments) or _library.missing()


register("causal_conv1d", "reference", causal_conv1d_reference)
register("causal_conv1d", "torch", causal_conv1d_torch)
register("causal_conv1d", "native", causal_conv1d_native, _serves)
register("causal_conv1d", "triton", causal_conv1d_triton, _serves_triton)
register("causal_conv1d", "causal-conv1d", causal_conv1d_installed, installed.serves)
