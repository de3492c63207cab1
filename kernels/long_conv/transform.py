"""One causal convolution by Fourier transforms whose gradient uses the spectra of the forward pass again.

A kernel with zeros behind it and inputs with zeros (or the inputs before them) in front or behind: where the size is at least that of both,
or the outputs that wrap round are dropped, the circular product is the causal one. Long inputs go in blocks that overlap by the kernel
(block Toeplitz), so the kernel's spectrum is one block's. Everything is in float32 at least.

Axes: n sequences   c channels   m signals that share a kernel   k taps, the first one for the current token   l, s tokens   f frequencies
q blocks
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from mmlm.kernels.long_conv.passes import Passes

BLOCK_OF_TAPS = 4  # blocks of this many kernels, where the inputs are longer than two of them
DIRECT = 8  # up to this many outputs with a past are sums


def fast_size(least: int) -> int:
    """The smallest 2^i or 3 * 2^i that is not below `least`."""
    power = 1 << max(least - 1, 1).bit_length()
    return power * 3 // 4 if least <= power * 3 // 4 else power


def causal_convolution(x_ncml: Tensor, kernel_ck: Tensor, past_ncmk: Tensor | None = None, *, passes: Passes) -> Tensor:
    """y_t = sum_j kernel_j x_{t - j}; past: the inputs before x, as many as the kernel's taps less one, else zeros.

    Returns [n, c, m, l] in the dtype of x.
    """
    exact = torch.promote_types(x_ncml.dtype, torch.float32)
    x, kernel, length = x_ncml.to(exact), kernel_ck.to(exact), x_ncml.shape[-1]
    if past_ncmk is None and kernel.shape[1] > length:
        kernel = kernel[:, :length]
    lead, taps = 0, kernel.shape[1]
    block = fast_size(BLOCK_OF_TAPS * taps)
    split = length > 2 * block
    if past_ncmk is not None or split:
        before = x.new_zeros(*x.shape[:3], taps - 1) if past_ncmk is None else past_ncmk.to(exact)
        x, lead = torch.cat([before, x], dim=-1), taps - 1
    if past_ncmk is not None and length <= DIRECT:
        windows = x.unfold(-1, taps, 1)  # [n, c, m, l, k]
        return (windows * kernel.flip(1)[:, None, None]).sum(-1).to(x_ncml.dtype)
    if not split:
        size = fast_size(x.shape[-1] if lead else length + taps - 1)
        y = _Convolution.apply(x, kernel, size, lead, passes)
    else:
        kept = block - lead
        count = -(-length // kept)
        blocks = torch.nn.functional.pad(x, (0, lead + count * kept - x.shape[-1])).unfold(-1, block, kept)
        y = _Convolution.apply(blocks.flatten(2, 3), kernel, block, lead, passes)
        y = y.unflatten(2, (x.shape[2], count)).flatten(-2)[..., :length]
    return y.to(x_ncml.dtype)


def spectrum(kernel_ck: Tensor, size: int, passes: Passes) -> Tensor:
    """rfft of the kernel at a size [1, c, 1, f]; remembered for a kernel that is not trained, until it changes or goes."""

    def computed() -> Tensor:
        return torch.fft.rfft(passes.padded(kernel_ck[None, :, None], 0, size))

    if kernel_ck.requires_grad or kernel_ck.is_inference():
        return computed()
    owner = kernel_ck._base if kernel_ck._base is not None else kernel_ck
    held = _spectra.setdefault(owner, {})
    key = (size, kernel_ck.shape, kernel_ck.stride(), kernel_ck.storage_offset(), kernel_ck.dtype)
    if key not in held or held[key][0] != owner._version:
        held[key] = owner._version, computed()
    return held[key][1]


_spectra: WeakIdKeyDictionary = WeakIdKeyDictionary()


class _Convolution(torch.autograd.Function):
    """Circular product of x [n, c, m, s] and kernel [c, k] at `size`, without its first `lead` outputs: [n, c, m, l]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, size: int, lead: int, passes: Passes) -> Tensor:
        taps, length = kernel.shape[1], x.shape[-1]
        spectrum_x, spectrum_k = torch.fft.rfft(passes.padded(x, 0, size)), spectrum(kernel, size, passes)
        wants_kernel = ctx.needs_input_grad[1]
        ctx.save_for_backward(spectrum_x if wants_kernel else None, spectrum_k)
        ctx.sizes, ctx.passes = (size, lead, taps, length), passes
        product = passes.times(spectrum_x, spectrum_k, inplace=not wants_kernel)
        return torch.fft.irfft(product, n=size)[..., lead:length]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        spectrum_x, spectrum_k = ctx.saved_tensors
        (size, lead, taps, length), passes = ctx.sizes, ctx.passes
        spectrum_y = torch.fft.rfft(passes.padded(dy, lead, size))
        dkernel = dx = None
        if ctx.needs_input_grad[1]:
            products = passes.times(spectrum_y, spectrum_x, conjugate=True).transpose(1, 2).flatten(0, 1)
            dkernel = torch.fft.irfft(products[0] if len(products) == 1 else products.sum(0), n=size)[:, :taps]
        if ctx.needs_input_grad[0]:
            dx = torch.fft.irfft(passes.times(spectrum_y, spectrum_k, conjugate=True, inplace=True), n=size)[..., :length]
        return dx, dkernel, None, None, None
