"""Causal convolution with a free kernel of any length, a carried past and document borders.

Documents of similar length are convolved together, each with its own zeros around it: a border cannot be masked in the frequency domain.
Short kernels go to the causal convolution of `kernels/conv1d`, which is the same sum.

Axes: b rows   t tokens   c channels   k taps, the first one for the current token   n documents   l tokens of a document
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmlm.kernels.conv1d import fast as short
from mmlm.kernels.dispatch import KERNELS, register, run
from mmlm.kernels.documents import Bucket, continuing, documents, last_inputs
from mmlm.kernels.long_conv.passes import NativePasses, Passes, TorchPasses, serves
from mmlm.kernels.long_conv.reference import long_conv_reference
from mmlm.kernels.long_conv.transform import causal_convolution, fast_size


def long_conv(
    x_btc: Tensor,
    kernel_ck: Tensor,
    document_bt: Tensor,
    state_bck: Tensor | None = None,
    *,
    continues: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """y [b, t, c], zero at padding; with a state also the last k - 1 inputs [b, c, k - 1] of each row's last document. In the dtype of x.

    document: [b, t], 0 for padding, which is passed over. state: the inputs before the rows; they belong to the first document of those
    rows where continues [b] is true (default: all). The spectrum of a kernel that is not trained is kept from call to call.
    By transforms, a later token moves an earlier output by round-off. Raises RecipeError where shapes do not fit or
    the back end asked for cannot serve.
    """
    short.check_convolution("long_conv", x_btc, kernel_ck, None, document_bt, state_bck)
    return run("long_conv", backend, x_btc, kernel_ck, document_bt, state_bck, continuing(continues, state_bck))


def long_conv_transforms(
    passes: Passes,
    x_btc: Tensor,
    kernel_ck: Tensor,
    document_bt: Tensor,
    state_bck: Tensor | None = None,
    continues_b: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Fourier transforms over buckets of documents."""
    b, t, channels = x_btc.shape
    past = kernel_ck.shape[1] - 1
    known = documents(document_bt)
    before = None if state_bck is None else state_bck.to(x_btc.dtype)
    if t == 0:
        return x_btc, before
    if known.plain and (continues_b is None or bool(continues_b.all())):
        x_bct = x_btc.transpose(1, 2)
        past_bcmk = None if before is None else before[:, :, None]
        y = causal_convolution(x_bct[:, :, None], kernel_ck, past_bcmk, passes=passes)[:, :, 0].transpose(1, 2)
        return y, None if before is None else torch.cat([before[..., min(t, past) :], x_bct[..., max(t - past, 0) :]], dim=-1)
    buckets = known.buckets(continues_b, fast_size)
    padded = torch.cat([x_btc.flatten(0, 1), x_btc.new_zeros(1, channels)])
    outputs = []
    for bucket in buckets:
        x_ncl = padded[bucket.place].transpose(1, 2)
        own = before[bucket.row, :, None] if bucket.continued and before is not None else None
        outputs.append(causal_convolution(x_ncl[:, :, None], kernel_ck, own, passes=passes)[:, :, 0].transpose(1, 2))
    y = scatter(outputs, buckets, x_btc)
    if before is None:
        return y, None
    tokens, segment = x_btc.transpose(1, 2), known.segment_after(continues_b)
    if not known.padded_at_end:
        order, _ = known.order
        tokens, segment = tokens.gather(2, order[:, None].expand_as(tokens)), segment.gather(1, order)
    return y, last_inputs(torch.cat([before, tokens], dim=2), known, segment)


def scatter(outputs: list[Tensor], buckets: list[Bucket], like: Tensor) -> Tensor:
    """Outputs [n, l, ...] of all buckets back at their places [b, t, ...], zero at padding."""
    b, t = like.shape[:2]
    place = torch.cat([bucket.place.flatten() for bucket in buckets]) if buckets else like.new_zeros(0, dtype=torch.long)
    found = torch.cat([*(y.flatten(0, 1) for y in outputs), like.new_zeros(1, *like.shape[2:])])
    source = torch.full((b * t + 1,), len(place), device=like.device)
    source[place] = torch.arange(len(place), device=like.device)
    return found[source[:-1]].unflatten(0, (b, t))


def long_conv_native(
    x_btc: Tensor, kernel_ck: Tensor, document_bt: Tensor, state_bck: Tensor | None = None, continues_b: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """A few taps by the short convolution in C++, with the taps in its order; many by transforms."""
    if KERNELS["causal_conv1d"].serves["native"](x_btc, kernel_ck, state_bck) is not None:
        return long_conv_transforms(NativePasses(), x_btc, kernel_ck, document_bt, state_bck, continues_b)
    y, last = short.causal_conv1d_native(x_btc, kernel_ck.flip(1), None, document_bt, state_bck, continues_b, None)
    return y, None if state_bck is None else last


def long_conv_triton(
    x_btc: Tensor, kernel_ck: Tensor, document_bt: Tensor, state_bck: Tensor | None = None, continues_b: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The short convolution in Triton with the taps in its order."""
    y, last = short.causal_conv1d_triton(x_btc, kernel_ck.flip(1), None, document_bt, state_bck, continues_b, None)
    return y, None if state_bck is None else last


def _serves_triton(*arguments: Any) -> str | None:
    if arguments and (taps := arguments[1].shape[1]) > short.MOST_TAPS_GPU:
        return f"{taps} taps are more than {short.MOST_TAPS_GPU}, with which the transforms of the torch form, cuFFT, are faster"
    return KERNELS["causal_conv1d"].serves["triton"](*arguments)


register("long_conv", "reference", long_conv_reference)
register("long_conv", "torch", partial(long_conv_transforms, TorchPasses()))
register("long_conv", "native", long_conv_native, serves)
register("long_conv", "triton", long_conv_triton, _serves_triton)
