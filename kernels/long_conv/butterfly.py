"""A Fourier transform as products with small matrices, which can be learned (FlashButterfly, arXiv:2302.06646, section 3.2).

With a size N = n m, a place t = m a + b and a frequency f = c + n d:
    X_f = sum_b exp(-2 pi i b d / m) exp(-2 pi i b c / N) sum_a D_n[c, a] x_t,   D_n[c, a] = exp(-2 pi i a c / n)
and the sum over b is again such a transform, down to sizes of at most 16. The matrices D_n are shared by all places of one size. Learned
ones make another transform, whose product of spectra is no causal convolution any more.

Axes: c channels   s tokens and zeros   n size of a matrix
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

LARGEST = 16  # size of a matrix
SIZES = (2, 4, 8, LARGEST)


def dft_matrix(size: int, dtype: torch.dtype = torch.complex64) -> Tensor:
    """D_n: [n, n], symmetric."""
    place = torch.arange(size, dtype=torch.float64, device="cpu")
    turn = torch.outer(place, place) % size
    return torch.polar(torch.ones_like(turn), -2 * math.pi / size * turn).to(dtype)


def block_fft(x_s: Tensor, matrices: Mapping[int, Tensor]) -> Tensor:
    """The transform [..., s] of complex x over its last axis, whose size is a power of two. matrices: size -> [n, n] for those of SIZES."""
    size = x_s.shape[-1]
    if size == 1:
        return x_s
    if size <= LARGEST:
        return x_s @ matrices[size].mT
    inner = size // LARGEST
    x = matrices[LARGEST] @ x_s.unflatten(-1, (LARGEST, inner))
    place = torch.outer(torch.arange(LARGEST, device=x.device), torch.arange(inner, device=x.device))
    exact = torch.float64 if x.dtype == torch.complex128 else torch.float32
    turn = torch.polar(torch.ones_like(place, dtype=exact), (-2 * math.pi / size * place.double()).to(exact))
    return block_fft(x * turn, matrices).mT.flatten(-2)


def butterfly_convolution(x_ncl: Tensor, kernel_ck: Tensor, matrices: Mapping[int, Tensor]) -> Tensor:
    """[n, c, l] in the dtype of x: the exact inverse of the product of both transforms, at a size that holds x and the kernel.

    With matrices of `dft_matrix` it is y_t = sum_j kernel_j x_{t - j}. A kernel longer than x is cut to its length.
    """
    length = x_ncl.shape[-1]
    kernel_ck = kernel_ck[:, :length]
    exact = torch.promote_types(x_ncl.dtype, torch.float32)
    size = 1 << max(length + kernel_ck.shape[1] - 2, 1).bit_length()
    spectra = []
    for signal in (x_ncl, kernel_ck):
        whole = torch.nn.functional.pad(signal.to(exact), (0, size - signal.shape[-1]))
        spectra.append(block_fft(whole.to(exact.to_complex()), matrices))
    return torch.fft.ifft(spectra[0] * spectra[1])[..., :length].real.to(x_ncl.dtype)
