"""Convolution with the kernel of a state-space system, and the state carried from chunk to chunk.

    y = (K * u) + C A^{l+1} h;   h <- A^length h + sum_l A^{length-1-l} B u_l
Exact for any lengths; a chunk costs as much as it is long. One token is a step of the recurrence.

Axes: b rows   t tokens   c channels   m signals that share a system   z real state channels   s documents   l tokens of a document
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mmlm.kernels.dispatch import absent, register, run
from mmlm.kernels.documents import continuing, documents
from mmlm.kernels.long_conv.fast import scatter
from mmlm.kernels.long_conv.passes import NativePasses, Passes, TorchPasses, serves
from mmlm.kernels.long_conv.reference import ssm_conv_reference
from mmlm.kernels.long_conv.systems import System
from mmlm.kernels.long_conv.transform import causal_convolution, fast_size


def ssm_conv(
    u_btcm: Tensor,
    system: System,
    document_bt: Tensor,
    state_bcmz: Tensor | None = None,
    *,
    continues: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """y [b, t, c, m] in the dtype of u, zero at padding, and with a state the state after each row's last token.

    document: [b, t], 0 for padding, which is passed over. state: that before the rows; it belongs to the first document of those rows where
    continues [b] is true (default: all). Raises RecipeError where the back end asked for cannot serve.
    """
    return run("ssm_conv", backend, u_btcm, system, document_bt, state_bcmz, continuing(continues, state_bcmz))


def ssm_conv_transforms(
    passes: Passes,
    u_btcm: Tensor,
    system: System,
    document_bt: Tensor,
    state_bcmz: Tensor | None = None,
    continues_b: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Fourier transforms over buckets of documents."""
    exact, t = torch.promote_types(u_btcm.dtype, torch.float32), u_btcm.shape[1]
    known = documents(document_bt)
    if t == 0:
        return u_btcm, state_bcmz
    goes_on = continues_b is None or bool(continues_b.all())
    if t == 1 and state_bcmz is not None and known.plain and goes_on:
        y, state = system.step(state_bcmz, u_btcm[:, 0].to(exact))
        return y[:, None].to(u_btcm.dtype), state
    if known.plain and goes_on:
        u_bcmt = u_btcm.permute(0, 2, 3, 1)
        y = causal_convolution(u_bcmt, system.kernel(t).to(exact), passes=passes)
        if state_bcmz is None:
            return y.permute(0, 3, 1, 2), None
        y = y + system.carried(state_bcmz, t)
        length = torch.full((len(u_btcm),), t, device=u_btcm.device)
        return y.permute(0, 3, 1, 2).to(u_btcm.dtype), system.absorbed(u_bcmt.to(exact), state_bcmz, length)

    buckets = known.buckets(continues_b, fast_size)
    padded = torch.cat([u_btcm.flatten(0, 1), u_btcm.new_zeros(1, *u_btcm.shape[2:])])
    kernel_cl = system.kernel(max((bucket.place.shape[1] for bucket in buckets), default=1)).to(exact)
    outputs = []
    for bucket in buckets:
        y = causal_convolution(padded[bucket.place].permute(0, 2, 3, 1), kernel_cl, passes=passes)
        if bucket.continued and state_bcmz is not None:
            y = (y + system.carried(state_bcmz[bucket.row], y.shape[-1])).to(y.dtype)
        outputs.append(y.permute(0, 3, 1, 2))
    y = scatter(outputs, buckets, u_btcm)
    if state_bcmz is None:
        return y, None
    place, row, continued = known.last(continues_b)
    if not len(row):
        return y, state_bcmz
    begin = torch.where(continued[:, None, None, None], state_bcmz[row], 0)
    length = (place < document_bt.numel()).sum(1)
    after = system.absorbed(padded[place].permute(0, 2, 3, 1).to(exact), begin, length)
    return y, state_bcmz.index_copy(0, row, after)


register("ssm_conv", "reference", ssm_conv_reference)
register("ssm_conv", "torch", partial(ssm_conv_transforms, TorchPasses()))
register("ssm_conv", "native", partial(ssm_conv_transforms, NativePasses()), serves)
absent("ssm_conv", "triton", "it is made of Fourier transforms and matrix products, which torch calls: cuFFT and cuBLAS")
